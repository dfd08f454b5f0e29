// Perfetto's own trace processor, in its WebAssembly build: requests on stdin, answers on stdout.
//
// usage: node trace_processor.mjs FOLDER, with both streams of TraceProcessorRpcStream messages.
// FOLDER has the engine as ui.perfetto.dev loads it. It is made for a worker of a browser, so it gets
// here what it asks of one.
import { readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import vm from "node:vm";

const folder = process.argv[2];
const talk = (...words) => process.stderr.write(words.join(" ") + "\n");
const worker = vm.createContext({
  location: { href: "file:///engine_bundle.js" },
  WorkerGlobalScope: class {},
  XMLHttpRequest: class {
    open(method, name) { this.name = name; }
    send() { this.response = readFileSync(join(folder, this.name)); }
  },
  console: { log: talk, info: talk, warn: talk, error: talk, debug: talk },
  performance, TextDecoder, TextEncoder, setTimeout, crypto, URL,
});
worker.self = worker;
vm.runInContext(readFileSync(join(folder, "engine_bundle.node.js"), "utf8"), worker);
const bytesOfTheWorker = vm.runInContext("(buffer) => new Uint8Array(buffer)", worker);
const port = {
  postMessage: (answer) => {
    for (let at = 0; at < answer.length; ) at += writeSync(1, answer, at);
  },
};
worker.onmessage({ data: port });
await setImmediate(); // the engine is ready when what it promised itself has run
const asked = [];
for await (const chunk of process.stdin) asked.push(chunk);
port.onmessage({ data: bytesOfTheWorker(Buffer.concat(asked)) });
