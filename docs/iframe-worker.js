// The search of a page that was opened as a file. Browsers start no worker from a file, so the
// worker's script runs in a hidden frame instead. With a server nothing here is used.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve, reject) => {
        const element = frame.contentDocument.createElement("script");
        element.onload = resolve;
        element.onerror = reject;
        element.src = new URL(script, location.href);
        frame.contentDocument.body.append(element);
      });
    }

    async postMessage(data) {
      await this.loaded;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {}
  };
}
