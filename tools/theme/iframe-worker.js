// Browsers start no worker from a file on disk. There, the search runs in a hidden frame that behaves like one.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.appendChild(this.frame);
    const inner = this.frame.contentWindow;
    inner.postMessage = (data) => this.answer(data);
    inner.importScripts = (...urls) => urls.reduce((before, each) => before.then(() => this.load(each)), Promise.resolve());
    this.ready = this.load(url);
  }
  load(url) {
    const page = this.frame.contentDocument;
    return new Promise((loaded, failed) => {
      const script = Object.assign(page.createElement("script"), { src: url, onload: loaded, onerror: failed });
      page.body.appendChild(script);
    });
  }
  answer(data) {
    const event = new MessageEvent("message", { data });
    this.dispatchEvent(event);
    this.onmessage?.(event);
  }
  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })));
  }
  terminate() {
    this.frame.remove();
  }
}
if (location.protocol === "file:") window.Worker = FrameWorker;
