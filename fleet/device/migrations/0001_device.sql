-- +goose Up
CREATE TABLE device_boxes (
  id TEXT PRIMARY KEY,
  serial TEXT NOT NULL,
  proven BIGINT NOT NULL,           -- whether a voucher tells the serial number
  voucher TEXT NOT NULL,
  board TEXT NOT NULL,
  runs TEXT NOT NULL,               -- release
  slot TEXT NOT NULL,
  boot TEXT NOT NULL,
  synced BIGINT NOT NULL,
  wire BIGINT NOT NULL,
  enrolled BIGINT NOT NULL,
  address TEXT NOT NULL,            -- public address
  network TEXT NOT NULL,            -- what boxes of one household share of it
  presence TEXT NOT NULL,
  presence_at BIGINT NOT NULL,
  journal BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  hello_journal BIGINT NOT NULL,
  hello_epoch BIGINT NOT NULL,
  code TEXT NOT NULL,               -- sealed: on the box's screen
  sticker TEXT NOT NULL,            -- sealed: on its case
  word TEXT NOT NULL,               -- sealed: on its page
  claim TEXT NOT NULL,
  owner TEXT NOT NULL,
  claimant TEXT NOT NULL,
  claim_until BIGINT NOT NULL,
  offer TEXT NOT NULL,              -- sealed: of the seller
  offer_until BIGINT NOT NULL,
  claimed BIGINT NOT NULL,
  name TEXT NOT NULL,
  name_key TEXT NOT NULL,
  certificate TEXT NOT NULL,
  certificate_until BIGINT NOT NULL,
  version BIGINT NOT NULL,          -- of what is desired
  delivered BIGINT NOT NULL,
  every_ms BIGINT NOT NULL,
  events BIGINT NOT NULL,           -- in device_events, or fewer
  wanted TEXT NOT NULL,             -- release
  alerts TEXT NOT NULL
);
CREATE INDEX device_boxes_owner ON device_boxes (owner, id);
CREATE INDEX device_boxes_name ON device_boxes (name_key, id);
CREATE INDEX device_boxes_runs ON device_boxes (runs, id);
CREATE INDEX device_boxes_board ON device_boxes (board, id);
CREATE INDEX device_boxes_claim ON device_boxes (claim, id);
CREATE INDEX device_boxes_presence ON device_boxes (presence, id);
CREATE INDEX device_boxes_network ON device_boxes (network, id);
CREATE INDEX device_boxes_code ON device_boxes (code) WHERE code <> '';
CREATE INDEX device_boxes_sticker ON device_boxes (sticker) WHERE sticker <> '';
CREATE INDEX device_boxes_offer ON device_boxes (offer) WHERE offer <> '';
CREATE INDEX device_boxes_timer ON device_boxes (id) WHERE claim_until <> 0 OR offer_until <> 0;
CREATE INDEX device_boxes_undelivered ON device_boxes (id) WHERE delivered < version;

CREATE TABLE device_seen (device TEXT PRIMARY KEY, at BIGINT NOT NULL);
CREATE INDEX device_seen_at ON device_seen (at, device);

CREATE TABLE device_facts (device TEXT PRIMARY KEY, facts TEXT NOT NULL);

CREATE TABLE device_labels (
  device TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (device, name)
);
CREATE INDEX device_labels_value ON device_labels (name, value, device);
CREATE INDEX device_labels_name ON device_labels (name, device);

CREATE TABLE device_terms (term BYTEA NOT NULL, device TEXT NOT NULL, PRIMARY KEY (term, device));
CREATE INDEX device_terms_device ON device_terms (device);

CREATE TABLE device_groups (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, selector TEXT NOT NULL,
  UNIQUE (owner, name)
);

CREATE TABLE device_certificates (
  id TEXT PRIMARY KEY, device TEXT NOT NULL,
  not_before BIGINT NOT NULL, not_after BIGINT NOT NULL
);
CREATE INDEX device_certificates_device ON device_certificates (device);
CREATE INDEX device_certificates_end ON device_certificates (not_after);

-- kind is "device" or "certificate"; until is 0 for good.
CREATE TABLE device_revocations (kind TEXT NOT NULL, id TEXT NOT NULL, until BIGINT NOT NULL, PRIMARY KEY (kind, id));

CREATE TABLE device_vouchers (id TEXT PRIMARY KEY, device TEXT NOT NULL);
CREATE INDEX device_vouchers_device ON device_vouchers (device);
CREATE TABLE device_serials (
  serial TEXT PRIMARY KEY, voucher TEXT NOT NULL, sticker TEXT NOT NULL, device TEXT NOT NULL
);
CREATE INDEX device_serials_device ON device_serials (device);

-- Claim secrets that were used. They never open a box again.
CREATE TABLE device_spent (device TEXT NOT NULL, secret TEXT NOT NULL, PRIMARY KEY (device, secret));

CREATE TABLE device_tries (
  account TEXT NOT NULL, network TEXT NOT NULL, realm TEXT NOT NULL, secret TEXT NOT NULL,
  prefix TEXT NOT NULL, at BIGINT NOT NULL,
  PRIMARY KEY (account, network, realm, secret)
);
CREATE INDEX device_tries_at ON device_tries (at);
CREATE INDEX device_tries_network ON device_tries (network);
CREATE INDEX device_tries_prefix ON device_tries (prefix);

-- journal 0 is the fleet's own.
CREATE TABLE device_events (
  device TEXT NOT NULL, journal BIGINT NOT NULL, seq BIGINT NOT NULL,
  shown BIGINT NOT NULL, at BIGINT NOT NULL, synced BIGINT NOT NULL, received BIGINT NOT NULL,
  kind TEXT NOT NULL, severity TEXT NOT NULL, fields TEXT NOT NULL,
  PRIMARY KEY (device, journal, seq)
);
CREATE INDEX device_events_shown ON device_events (device, shown, journal, seq);
CREATE INDEX device_events_received ON device_events (received);

CREATE TABLE device_log (
  device TEXT NOT NULL, n BIGINT NOT NULL, received BIGINT NOT NULL, at BIGINT NOT NULL,
  level TEXT NOT NULL, line TEXT NOT NULL,
  PRIMARY KEY (device, n)
);
CREATE INDEX device_log_received ON device_log (received);
CREATE INDEX device_log_at ON device_log (device, at);

CREATE TABLE device_audit (id TEXT PRIMARY KEY, body TEXT NOT NULL);
