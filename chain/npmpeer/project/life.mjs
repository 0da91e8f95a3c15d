// Leads a deployment through its whole life with the real TypeScript client:
// the tenant creates it from an SDL file, a provider bids, the tenant leases,
// looks at everything over gRPC and REST, and closes. Prints one JSON object.
//
//   node life.mjs '{"rpc": URL, "grpc": URL, "rest": URL, "tenant": MNEMONIC, "provider": MNEMONIC, "sdl": FILE, "dseq": N}'
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { createChainNodeSDK, createStargateClient, generateManifest, generateManifestVersion, yaml } from "@akashnetwork/chain-sdk";
import { createChainNodeWebSDK } from "@akashnetwork/chain-sdk/web";
import { Secp256k1HdWallet } from "@cosmjs/amino";
import { SigningStargateClient } from "@cosmjs/stargate";

globalThis.crypto ??= webcrypto; // Node.js 18 has it, but not there

const config = JSON.parse(process.argv[2]);
const connect = (signerMnemonic) => {
  const signer = createStargateClient({ baseUrl: config.rpc, signerMnemonic });
  return { signer, akash: createChainNodeSDK({ query: { baseUrl: config.grpc }, tx: { signer } }).akash };
};
const tenant = connect(config.tenant);
const provider = connect(config.provider);
const owner = (await tenant.signer.getAccount()).address;
const seller = (await provider.signer.getAccount()).address;
const web = createChainNodeWebSDK({ query: { baseUrl: config.rest }, tx: { signer: tenant.signer } }).akash;

const made = generateManifest(yaml([readFileSync(config.sdl, "utf8")]));
if (!made.ok) throw new Error(JSON.stringify(made.value));
const { groups, groupSpecs } = made.value;
const price = groupSpecs[0].resources[0].price;
const deposit = { amount: { denom: price.denom, amount: "5000000" }, sources: [1] };
const dseq = BigInt(config.dseq);
const id = { owner, dseq };
const bid = { owner, dseq, gseq: 1, oseq: 1, provider: seller, bseq: 0 };

await provider.akash.provider.v1beta4.createProvider({
  owner: seller, hostUri: "https://box.example:8443", info: { email: "", website: "" },
  attributes: groupSpecs[0].requirements.attributes,
});
await tenant.akash.deployment.v1beta4.createDeployment({
  id, groups: groupSpecs, deposit, hash: await generateManifestVersion(groups),
});
const { orders } = await provider.akash.market.v1beta5.getOrders({ filters: { owner, dseq, state: "open" } });
await provider.akash.market.v1beta5.createBid({ id: bid, price, deposit: { amount: { denom: price.denom, amount: "500000" }, sources: [1] }, resourcesOffer: [] });
const { bids } = await tenant.akash.market.v1beta5.getBids({ filters: { owner, dseq, state: "open" } });
await tenant.akash.market.v1beta5.createLease({ bidId: bid });
const { leases } = await tenant.akash.market.v1beta5.getLeases({ filters: { owner, dseq, state: "active" } });
const grpc = await tenant.akash.deployment.v1beta4.getDeployment({ id });
const rest = await web.deployment.v1beta4.getDeployment({ id });
await provider.akash.market.v1beta5.withdrawLease({ id: bid });
await tenant.akash.deployment.v1beta4.closeDeployment({ id });
const closed = await tenant.akash.deployment.v1beta4.getDeployment({ id });

// What a Ledger signs: amino JSON.
const wallet = await Secp256k1HdWallet.fromMnemonic(config.tenant, { prefix: "akash" });
const amino = await SigningStargateClient.connectWithSigner(config.rpc, wallet);
const sent = await amino.sendTokens(owner, seller, [{ denom: "uakt", amount: "7" }], { amount: [{ denom: "uakt", amount: "5000" }], gas: "200000" }, "amino");
amino.disconnect();

const hex = (bytes) => Buffer.from(bytes).toString("hex");
console.log(JSON.stringify({
  orders: orders.length,
  bids: bids.length,
  leases: leases.length,
  hash: hex(grpc.deployment.hash),
  restHash: hex(rest.deployment.hash),
  state: grpc.deployment.state,
  restState: rest.deployment.state,
  closed: closed.deployment.state,
  account: closed.escrowAccount.state.state,
  amino: sent.code,
}));
await tenant.signer.disconnect();
await provider.signer.disconnect();
