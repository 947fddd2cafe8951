/** Pictures on the server: which a folder holds, where to see them, and bringing new ones there. */
import { api } from "../../../scripts/api.js";
import { post } from "../shared/server.js";
import { t } from "../shared/texts.js";

const PACK = new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0];
const PICTURES = /\.(a?png|jpe?g|jpe|jfif|webp|bmp|dib|gif|tiff?|avif|hei[cf]|tga|p[pgbn]m|pfm|ico|jp2|mpo|pcx|qoi|psd|sgi|dds)$/i;
const SHOWN_BY_BROWSERS = /\.(a?png|jpe?g|jpe|jfif|webp|bmp|gif|avif|ico|mpo)$/i;
const CAPTIONS = /\.(txt|caption)$/i;

export const isPicture = (file) => PICTURES.test(file.name);
export const isCaption = (file) => CAPTIONS.test(file.name);

/** {pictures: [names], count: of all in the folder, place: "input" | "example" | "nowhere", message: sentence or ""} */
export async function listFolder(folder) {
  const query = new URLSearchParams({ folder });
  const answer = await api.fetchApi(`/personalize/pictures?${query}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(t("tray.server_refused", { status: answer.status }));
  return await answer.json();
}

/** {captions: {picture: text}, masks: {picture: version}} that lie in files beside the pictures; `names` one a line, or "" */
export const aboutPictures = (folder, names) => ask("about", { folder, names });

/** {findings: [{code, values, sentence, pictures, is_note}], masked: [pictures with a mask]} */
export const checkPictures = (folder, names, how) => ask("check", { folder, names, ...how });

/** Into a file beside the picture. */
export const saveCaption = (folder, name, text) => ask("caption", { folder, name, text });

/** {filename, subfolder, type} of a copy that ComfyUI's mask editor can open */
export const startPainting = (folder, name) => ask("painting", { folder, name });

/** Takes over what the editor saved as the picture's mask. */
export const saveMask = (folder, name, painted) => ask("mask", { folder, name, painted });

/** Address of what darkens all but the subject. */
export const maskUrl = (folder, name, version) =>
  api.apiURL(`/personalize/pictures/mask?${new URLSearchParams({ folder, name, version })}`);

async function ask(what, body) {
  const answer = await post(`pictures/${what}`, body);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.message ?? t("tray.server_refused", { status: answer.status }));
  return said;
}

/** Address of a picture; `name` may lie in a subfolder of `folder`. */
export function pictureUrl(folder, name, place) {
  const parts = [...folder.split("/"), ...name.split("/")].filter((part) => part);
  const ofPack = [PACK, "assets", ...parts].map(encodeURIComponent).join("/");
  if (place === "example") return api.apiURL(`/workflow_templates/${ofPack}`);
  const shown = SHOWN_BY_BROWSERS.test(name) ? {} : { preview: "webp;80" };
  const query = new URLSearchParams({ filename: parts.pop(), subfolder: parts.join("/"), type: "input", ...shown });
  return api.apiURL(`/view?${query}`);
}

/** `wanted`, or with the first number that makes it a folder that is not there yet. */
export async function unusedFolder(wanted) {
  for (let number = 1; ; number++) {
    const candidate = number === 1 ? wanted : `${wanted}-${number}`;
    if ((await listFolder(candidate)).place === "nowhere") return candidate;
  }
}

/**
 * Uploads pictures, and the captions that belong to them, into input/<folder>/; nothing there is overwritten.
 * @returns names of the pictures as the server keeps them, in the order given
 */
export async function uploadPictures(files, folder) {
  const kept = new Map();
  for (const file of files.filter(isPicture)) {
    kept.set(stem(file.name).toLowerCase(), await upload(file, file.name, folder, false));
  }
  for (const file of files.filter(isCaption)) {
    const named = stem(file.name); // of dog.txt or dog.jpg.txt
    const picture = kept.get(named.toLowerCase()) ?? kept.get(stem(named).toLowerCase()) ?? file.name;
    await upload(file, `${stem(picture)}.${suffix(file.name)}`, folder, true);
  }
  return [...kept.values()];
}

async function upload(file, name, folder, overwrite) {
  const body = new FormData();
  body.append("image", file, name);
  body.append("subfolder", folder);
  body.append("type", "input");
  body.append("overwrite", String(overwrite));
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(t("tray.upload_refused", { name, status: answer.status }));
  return (await answer.json()).name;
}

const stem = (name) => name.replace(/\.[^.]*$/, "");
const suffix = (name) => name.slice(name.lastIndexOf(".") + 1).toLowerCase();
