// Leases with the real TypeScript client from a provider that runs: creates a
// deployment from an SDL file, takes the provider's bid, sends the manifest to its
// gateway with a token, waits until every service answers, asks for a page, and
// closes. Prints one JSON object.
//
//   node lease.mjs '{"rpc": URL, "grpc": URL, "tls": HOST:PORT, "http": HOST:PORT, "tenant": MNEMONIC, "sdl": FILE, "dseq": N}'
//
// tls and http are where the world reaches the provider and its workloads,
// whatever host is asked for: what DNS would say.
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import tls from "node:tls";
import { setTimeout as pause } from "node:timers/promises";
import { createChainNodeSDK, createStargateClient, generateManifest, generateManifestVersion, JwtTokenManager, manifestToSortedJSON, yaml } from "@akashnetwork/chain-sdk";
import { Secp256k1HdWallet } from "@cosmjs/amino";

globalThis.crypto ??= webcrypto; // Node.js 18 has it, but not there

const config = JSON.parse(process.argv[2]);
const signer = createStargateClient({ baseUrl: config.rpc, signerMnemonic: config.tenant });
const { akash } = createChainNodeSDK({ query: { baseUrl: config.grpc }, tx: { signer } });
const owner = (await signer.getAccount()).address;

// until asks again until there is an answer. A provider in an emulated machine takes
// its time.
const until = async (what, ask) => {
  let last = "no answer";
  for (const end = Date.now() + 8 * 60_000; Date.now() < end; ) {
    try {
      const found = await ask();
      if (found) return found;
    } catch (e) {
      last = e;
    }
    await pause(200);
  }
  throw new Error(`not in time: ${what}: ${last}`);
};

const made = generateManifest(yaml([readFileSync(config.sdl, "utf8")]));
if (!made.ok) throw new Error(JSON.stringify(made.value));
const { groups, groupSpecs } = made.value;
const dseq = BigInt(config.dseq);
await akash.deployment.v1beta4.createDeployment({
  id: { owner, dseq }, groups: groupSpecs, hash: await generateManifestVersion(groups),
  deposit: { amount: { denom: groupSpecs[0].resources[0].price.denom, amount: "5000000" }, sources: [1] },
});
const bid = await until("a bid", async () => {
  const { bids } = await akash.market.v1beta5.getBids({ filters: { owner, dseq, state: "open" } });
  return bids[0]?.bid.id;
});
await until("the lease", async () => {
  await akash.market.v1beta5.createLease({ bidId: bid });
  return true;
});
const { provider } = await akash.provider.v1beta4.getProvider({ owner: bid.provider });
const gateway = new URL(provider.hostUri);

// The gateway's certificate is its own: the chain says whether it is valid.
const connect = (options, done) => {
  const [host, port] = config.tls.split(":");
  const socket = tls.connect({ host, port, servername: gateway.hostname, rejectUnauthorized: false, minVersion: "TLSv1.3" });
  socket.once("error", done);
  socket.once("secureConnect", async () => {
    try {
      const shown = socket.getPeerX509Certificate();
      const serial = BigInt("0x" + shown.serialNumber).toString();
      const { certificates } = await akash.cert.v1.getCertificates({ filter: { owner: bid.provider, serial, state: "valid" } });
      if (certificates.length !== 1 || !shown.subject.split("\n").includes(`CN=${bid.provider}`)) throw new Error("the server is not the provider");
      done(null, socket);
    } catch (e) {
      socket.destroy();
      done(e);
    }
  });
};

const ask = (client, options, body) => new Promise((resolve, reject) => {
  const request = client.request(options, (response) => {
    const parts = [];
    response.on("data", (part) => parts.push(part));
    response.on("end", () => resolve({ status: response.statusCode, text: Buffer.concat(parts).toString() }));
  });
  request.on("error", reject);
  request.end(body);
});

const tokens = new JwtTokenManager(await Secp256k1HdWallet.fromMnemonic(config.tenant, { prefix: "akash" }));
const now = Math.floor(Date.now() / 1000);
const token = await tokens.generateToken({
  version: "v1", iss: owner, iat: now, nbf: now, exp: now + 900,
  leases: { access: "granular", permissions: [{ provider: bid.provider, access: "scoped", scope: ["send-manifest", "status"] }] },
});
const header = (more) => ({ host: gateway.host, authorization: `Bearer ${token}`, ...more });
const api = (method, path, body) => ask(https, { createConnection: connect, method, path, headers: header(body && { "content-type": "application/json", "content-length": Buffer.byteLength(body) }) }, body);

const sent = await api("PUT", `/deployment/${dseq}/manifest`, manifestToSortedJSON(groups));
if (sent.status !== 200) throw new Error(`manifest: ${sent.status} ${sent.text}`);
const path = `/lease/${dseq}/${bid.gseq}/${bid.oseq}`;
const status = await until("every service answers", async () => {
  const { status, text } = await api("GET", `${path}/status`);
  if (status !== 200) throw new Error(`status: ${status} ${text}`);
  const parsed = JSON.parse(text);
  return Object.values(parsed.services).every((s) => s.available === s.total) && parsed;
});
const forbidden = await api("GET", `${path}/manifest`); // the token is not for this
const uri = Object.values(status.services).flatMap((s) => s.uris ?? [])[0];
const [webHost, webPort] = config.http.split(":");
const page = await until("the page", async () => {
  const got = await ask(http, { host: webHost, port: webPort, path: "/", headers: { host: uri } });
  return got.status === 200 && got.text;
});
await akash.deployment.v1beta4.closeDeployment({ id: { owner, dseq } });

console.log(JSON.stringify({ provider: bid.provider, manifest: sent.status, beyondTheToken: forbidden.status, services: status.services, page }));
await signer.disconnect();
process.exit(0); // what the client keeps open is nobody's concern any more
