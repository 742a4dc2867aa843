// The worker that searches, for pages in a folder and for words as they are typed.
// The plugin "offline" takes a script of this name for the shim that it would otherwise load from another host.

// "--seed" is a flag, "outcome: A" is text: neither is an operator of the search engine.
const words = (message) =>
  message.type === 2 ? { type: 2, data: message.data.replace(/(^|\s)[-+]+|:/g, " ") } : message;

// Browsers start no worker from a folder (file://): there its script runs in a hidden frame of the page.
class FrameWorker extends EventTarget {
  constructor(address) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.inside = frame.contentWindow;
    this.inside.document.open();
    this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    this.loaded = new Promise((resolve) => this.inside.addEventListener("load", resolve));
    this.inside.document.write(`<script src="${address}"></script>`);
    this.inside.document.close();
  }

  postMessage(data) {
    this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
  }
}

window.Worker = class extends (location.protocol === "file:" ? FrameWorker : Worker) {
  postMessage(message) {
    super.postMessage(words(message));
  }
};
