-- +goose Up
-- Rules of operators, and built-in ones that an operator changed.
CREATE TABLE alert_rules (id TEXT PRIMARY KEY, body TEXT NOT NULL);

-- When a rule was last held against the boxes, and why it could not be.
CREATE TABLE alert_judged (rule TEXT PRIMARY KEY, at BIGINT NOT NULL, error TEXT NOT NULL);

-- Where each rule stands with each box or group; no row: all is well.
CREATE TABLE alert_items (
  rule TEXT NOT NULL,
  target TEXT NOT NULL,      -- device, value of the group's label, or empty
  state TEXT NOT NULL,
  since BIGINT NOT NULL,     -- when it became bad
  clear BIGINT NOT NULL,     -- since when it is good while it fires; 0: it is not
  alert TEXT NOT NULL,       -- the alert while it fires
  ended BIGINT NOT NULL,     -- when the alert before ended
  flaps BIGINT NOT NULL,
  PRIMARY KEY (rule, target)
);

-- Every time a rule fired, and until when.
CREATE TABLE alert_alerts (
  id TEXT PRIMARY KEY,
  rule TEXT NOT NULL,
  name TEXT NOT NULL,
  severity TEXT NOT NULL,
  target TEXT NOT NULL,
  device TEXT NOT NULL,      -- empty: a group, or the fleet
  box TEXT NOT NULL,         -- what its owner called it
  owner TEXT NOT NULL,
  labels TEXT NOT NULL,
  members TEXT NOT NULL,     -- devices of a group
  sentence TEXT NOT NULL,
  advice TEXT NOT NULL,      -- sentence for owners
  value DOUBLE PRECISION NOT NULL,
  since BIGINT NOT NULL,
  fired BIGINT NOT NULL,
  ended BIGINT NOT NULL,
  reason TEXT NOT NULL,      -- why it ended
  told BIGINT NOT NULL,      -- whether it was handed to those who are told
  withheld TEXT NOT NULL,    -- why it was not yet
  acked BIGINT NOT NULL,
  acked_by TEXT NOT NULL,
  note TEXT NOT NULL
);
CREATE INDEX alert_alerts_firing ON alert_alerts (id) WHERE ended = 0;
CREATE INDEX alert_alerts_untold ON alert_alerts (id) WHERE ended = 0 AND told = 0;
CREATE INDEX alert_alerts_device ON alert_alerts (device, id);
CREATE INDEX alert_alerts_owner ON alert_alerts (owner, id);
CREATE INDEX alert_alerts_rule ON alert_alerts (rule, id);
CREATE INDEX alert_alerts_ended ON alert_alerts (ended) WHERE ended <> 0;

CREATE TABLE alert_silences (
  id TEXT PRIMARY KEY, selector TEXT NOT NULL, made BIGINT NOT NULL, until BIGINT NOT NULL, account TEXT NOT NULL, why TEXT NOT NULL
);
CREATE INDEX alert_silences_until ON alert_silences (until);

-- Staff's receivers. An owner's is "owner:" and his account, and stands here not.
CREATE TABLE alert_receivers (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, address TEXT NOT NULL, secret BYTEA,
  severity TEXT NOT NULL, selector TEXT NOT NULL
);

CREATE TABLE alert_quiet (owner TEXT PRIMARY KEY, from_minute BIGINT NOT NULL, to_minute BIGINT NOT NULL, zone TEXT NOT NULL, mute BIGINT NOT NULL);

-- What is to be told to whom: the key makes it once.
CREATE TABLE alert_outbox (
  receiver TEXT NOT NULL,
  alert TEXT NOT NULL,
  news TEXT NOT NULL,        -- firing or resolved
  at BIGINT NOT NULL,
  body TEXT NOT NULL,
  message TEXT NOT NULL,     -- the message it is in; empty: none yet
  PRIMARY KEY (receiver, alert, news)
);
CREATE INDEX alert_outbox_alert ON alert_outbox (alert);
CREATE INDEX alert_outbox_waiting ON alert_outbox (receiver, at) WHERE message = '';

CREATE TABLE alert_messages (
  id TEXT PRIMARY KEY,
  receiver TEXT NOT NULL,
  state TEXT NOT NULL,
  made BIGINT NOT NULL,
  tries BIGINT NOT NULL,
  next_try BIGINT NOT NULL,
  done BIGINT NOT NULL,
  subject TEXT NOT NULL,
  body TEXT NOT NULL,
  error TEXT NOT NULL
);
CREATE UNIQUE INDEX alert_messages_queued ON alert_messages (receiver) WHERE state = 'queued';
CREATE INDEX alert_messages_receiver ON alert_messages (receiver, made);
CREATE INDEX alert_messages_next ON alert_messages (next_try) WHERE state = 'queued';
CREATE INDEX alert_messages_done ON alert_messages (done) WHERE done <> 0;
