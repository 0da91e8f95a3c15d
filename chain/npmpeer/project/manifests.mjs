// Reads SDL files with the real TypeScript client and prints, for each, one
// line of JSON: what the client makes of it, or why it refuses it.
//
//   node manifests.mjs FILE...
//   {"file": …, "manifest": text of the sorted JSON, "hash": hex, "groups": […]}
//   {"file": …, "refused": text}
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { generateManifest, generateManifestVersion, manifestToSortedJSON, yaml } from "@akashnetwork/chain-sdk";

globalThis.crypto ??= webcrypto; // Node.js 18 has it, but not there

const text = (bytes) => new TextDecoder().decode(bytes);
const attributes = (all) => all.map(({ key, value }) => ({ key, value }));

// group is a GroupSpec in the shape of `croft sdl groups`.
const group = (g) => ({
  name: g.name,
  requirements: {
    signed_by: { all_of: g.requirements.signedBy.allOf, any_of: g.requirements.signedBy.anyOf },
    attributes: attributes(g.requirements.attributes),
  },
  resources: g.resources.map(({ resource: r, count, price }) => ({
    resource: {
      id: r.id,
      cpu: { units: { val: text(r.cpu.units.val) }, attributes: attributes(r.cpu.attributes) },
      memory: { quantity: { val: text(r.memory.quantity.val) }, attributes: attributes(r.memory.attributes) },
      storage: r.storage.map((v) => ({ name: v.name, quantity: { val: text(v.quantity.val) }, attributes: attributes(v.attributes) })),
      gpu: { units: { val: text(r.gpu.units.val) }, attributes: attributes(r.gpu.attributes) },
      endpoints: r.endpoints.map((e) => ({ kind: ["SHARED_HTTP", "RANDOM_PORT", "LEASED_IP"][e.kind], sequence_number: e.sequenceNumber })),
    },
    count,
    price: { denom: price.denom, amount: price.amount },
  })),
});

for (const file of process.argv.slice(2)) {
  const answer = { file };
  try {
    const made = generateManifest(yaml([readFileSync(file, "utf8")]));
    if (made.ok) {
      answer.manifest = manifestToSortedJSON(made.value.groups);
      answer.hash = Buffer.from(await generateManifestVersion(made.value.groups)).toString("hex");
      answer.groups = made.value.groupSpecs.map(group);
    } else {
      answer.refused = made.value.map((e) => e.message).join("; ");
    }
  } catch (e) {
    answer.refused = String(e);
  }
  console.log(JSON.stringify(answer));
}
