// What browsers refuse to pages opened from file://. They start no worker, in which Material's search runs: its script
// runs in a hidden frame instead, and looks for the class of this name in the frame's parent. They read no sitemap, with
// which links between languages are found: without them the language menu leads to the same page all the same.
if (location.protocol === "file:") {
  document.querySelectorAll("link[rel=alternate]").forEach(link => link.remove())
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      const load = source => new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script")
        Object.assign(script, { src: source, onload: resolve, onerror: reject })
        frame.contentDocument.body.append(script)
      })
      inside.importScripts = (...sources) => sources.reduce((done, one) => done.then(() => load(one)), Promise.resolve())
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = load(url)
      this.inside = inside
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
  window.Worker = window.IFrameWorker
}
