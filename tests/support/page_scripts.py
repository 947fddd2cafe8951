"""JavaScript that the tests run in ComfyUI's page."""

READY = """() => !!(window.app?.vueAppReady && window.app.graph && window.comfyAPI && window.app.extensionManager
    && !window.app.extensionManager.spinner && !document.getElementById('splash-loader'))"""

# A page's warnings about what others call say who called.
WARN_WITH_CALLERS = """const {warn} = console;
console.warn = (...said) => warn(...said, ...String(said[0]).includes('is deprecated') ? [new Error().stack] : [])"""

# Remembers how each prompt ended and counts loaded graphs: both are over before a test could ask.
WATCH = """() => {
    const watch = window.testWatch = {ended: {}, events: [], loads: 0};
    const load = window.app.loadGraphData.bind(window.app);
    window.app.loadGraphData = async (...args) => { try { return await load(...args) } finally { watch.loads++ } };
    const api = window.comfyAPI.api.api;
    for (const name of ['execution_start', 'execution_cached', 'executing', 'executed', 'progress'])
        api.addEventListener(name, event => watch.events.push([name, event.detail]));
    for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
        api.addEventListener(name, event => { watch.ended[event.detail.prompt_id] = [name, event.detail] });
}"""

# Every node on the canvas, subgraphs included, beside what its definition says.
GRAPH = """() => {
    const known = window.LiteGraph.registered_node_types, widgetTypes = new Set(Object.keys(window.app.widgets ?? {}));
    const fits = (type, options, choices, value) => {
        if (type === 'INT' || type === 'FLOAT')
            return typeof value === 'number' && value >= (options.min ?? -Infinity)
                && value <= (options.max ?? Infinity);
        if (type === 'BOOLEAN') return typeof value === 'boolean';
        if (type === 'STRING') return typeof value === 'string';
        if (type === 'COMBO')
            return !Array.isArray(choices) || options.remote || Array.isArray(value) || choices.includes(value);
        return true;
    };
    const describe = (node, prefix) => {
        const definition = node.constructor?.nodeData, widgets = node.widgets ?? [], lacking = [], bad = [];
        for (const [name, [kind, options = {}]] of Object.entries({
                ...definition?.input?.required, ...definition?.input?.optional})) {
            const type = Array.isArray(kind) ? 'COMBO' : kind, choices = Array.isArray(kind) ? kind : options.options;
            if (!widgetTypes.has(type) || options.forceInput) continue;
            const widget = widgets.find(candidate => candidate.name === name);
            const linked = node.inputs?.some((input, slot) => input.widget?.name === name
                && window.LiteGraph.LGraphNode.prototype.getInputLink.call(node, slot));
            if (!widget) lacking.push(name);
            else if (!linked && !fits(type, options, choices, widget.value)) bad.push([name, widget.value]);
        }
        return {
            id: prefix + node.id, type: node.type, title: node.title, lacking, bad,
            missing: !node.subgraph && !(node.type in known),
            widgets: Object.fromEntries(widgets.map(widget => [widget.name, widget.value])),
            serialized: widgets.filter(widget => widget.serialize !== false).map(widget => widget.value),
            images: (node.imgs ?? []).map(image => [image.src, image.naturalWidth, image.naturalHeight]),
        };
    };
    const walk = (graph, prefix) => graph.nodes.flatMap(node => [
        describe(node, prefix), ...(node.subgraph ? walk(node.subgraph, prefix + node.id + ':') : [])]);
    return JSON.parse(JSON.stringify(walk(window.app.rootGraph ?? window.app.graph, '')));
}"""

# Classic nodes fetch their pictures only when drawn.
IMAGES_SHOWN = """ids => ids.every(id => {
    const done = image => image.complete && image.naturalWidth > 0;
    if (window.LiteGraph.vueNodesMode) {
        const images = [...document.querySelectorAll(`[data-node-id="${id}"] img`)];
        return images.length > 0 && images.every(done);
    }
    window.app.canvas.setDirty(true, true);
    const images = window.app.graph.getNodeById(id)?.imgs;
    return images?.length > 0 && images.every(done);
})"""

NODE_BOX = """id => {
    const canvas = window.app.canvas, box = window.app.graph.getNodeById(id).boundingRect, margin = 8;
    const view = canvas.canvas.getBoundingClientRect(), scale = canvas.ds.scale, offset = canvas.ds.offset;
    return {x: Math.max(0, view.x + (box[0] + offset[0]) * scale - margin),
            y: Math.max(0, view.y + (box[1] + offset[1]) * scale - margin),
            width: box[2] * scale + 2 * margin, height: box[3] * scale + 2 * margin};
}"""
