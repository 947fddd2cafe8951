/** Asking the pack's own addresses on ComfyUI's server. */
import { api } from "../../../scripts/api.js";

/** @param body what becomes JSON @returns the answer, whatever its status */
export const post = (address, body) => api.fetchApi(`/personalize/${address}`, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
