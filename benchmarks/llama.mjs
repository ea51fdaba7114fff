// What llama.cpp makes of a GGUF file.   node llama.mjs MODEL.gguf ASKED.json
//   {"threads": n, "context": n,
//    "scored": [[prompt, [ids that follow]], ...],      the nats of the ids, each after the others
//    "timed": [{"prompt": [ids], "tokens": n}, ...]}    tokens a second, greedy, one text each
import {readFileSync} from "fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const asked = JSON.parse(readFileSync(process.argv[3], "utf8"));
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true,
    maxThreads: asked.threads, logLevel: LlamaLogLevel.error,
});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({contextSize: asked.context, threads: asked.threads});
const sequence = context.getSequence();

// -log softmax(logits)[token]
function nats(logits, token) {
    const largest = Math.max(...logits.values());
    let sum = 0;
    for (const logit of logits.values()) sum += Math.exp(logit - largest);
    return Math.log(sum) + largest - logits.get(token);
}

async function score(prompt, next) {
    const ids = [...model.tokenize(prompt, true), ...next];
    const first = ids.length - next.length - 1;
    await sequence.clearHistory();
    const items = ids.slice(0, -1).map(
        (id, n) => (n < first ? id : [id, {generateNext: {logits: true}}])
    );
    const found = await sequence.controlledEvaluate(items);
    return next.map((token, n) => nats(found[first + n].next.logits, token));
}

async function time({prompt, tokens}) {
    await sequence.clearHistory();
    const started = performance.now();
    let count = 0;
    for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        if (++count >= tokens) break;
    }
    return count / (performance.now() - started) * 1000;
}

const answer = {scored: [], timed: []};
for (const [prompt, next] of asked.scored ?? []) answer.scored.push(await score(prompt, next));
for (const one of asked.timed ?? []) answer.timed.push(await time(one));
process.stdout.write(JSON.stringify(answer) + "\n", () => process.exit(0));
