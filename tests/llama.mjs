// What llama.cpp makes of a GGUF file: ids of texts, greedy tokens after openings, and their text.
//   node llama.mjs MODEL.gguf ASKED.json     {"texts": [...], "openings": [...], "tokens": n}
import {readFileSync} from "fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const asked = JSON.parse(readFileSync(process.argv[3], "utf8"));
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: LlamaLogLevel.error,
});
const model = await llama.loadModel({modelPath: process.argv[2]});
const ids = asked.texts.map((text) => model.tokenize(text, true));
const context = await model.createContext({contextSize: asked.context, threads: 1});
const sequence = context.getSequence();
const generated = [];
for (const opening of asked.openings) {
    await sequence.clearHistory();
    const found = [];
    for await (const token of sequence.evaluate(model.tokenize(opening, true), {temperature: 0})) {
        found.push(token);
        if (found.length >= asked.tokens) break;
    }
    generated.push(found);
}
const shown = generated.map((tokens) => model.detokenize(tokens, false));
process.stdout.write(JSON.stringify({ids, generated, shown}) + "\n", () => process.exit(0));
