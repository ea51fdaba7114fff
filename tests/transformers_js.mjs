// What transformers.js makes of an export for ONNX: ids of texts, greedy tokens after openings, and their text.
//   node transformers_js.mjs FOLDER ASKED.json     {"texts": [...], "openings": [...], "tokens": n}
import {readFileSync} from "fs";
import {basename, dirname, resolve} from "path";
import {AutoModelForCausalLM, AutoTokenizer, env} from "@huggingface/transformers";

const asked = JSON.parse(readFileSync(process.argv[3], "utf8"));
const folder = resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const threads = {intraOpNumThreads: 1, interOpNumThreads: 1};
const model = await AutoModelForCausalLM.from_pretrained(name, {dtype: "fp32", device: "cpu", session_options: threads});
const ids = asked.texts.map((text) => tokenizer.encode(text));
const generated = [];
for (const opening of asked.openings) {
    const inputs = tokenizer(opening);
    const found = await model.generate({...inputs, do_sample: false, max_new_tokens: asked.tokens});
    generated.push(found.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number));
}
const shown = generated.map((tokens) => tokenizer.decode(tokens));
process.stdout.write(JSON.stringify({ids, generated, shown}) + "\n", () => process.exit(0));
