-- +goose Up
CREATE TABLE audit_entries (
  seq     BIGINT PRIMARY KEY,
  id      TEXT   NOT NULL UNIQUE,
  at      BIGINT NOT NULL,
  actor   TEXT   NOT NULL,
  role    TEXT   NOT NULL,
  address TEXT   NOT NULL,
  action  TEXT   NOT NULL,
  kind    TEXT   NOT NULL,
  object  TEXT   NOT NULL,
  before  TEXT   NOT NULL,
  after   TEXT   NOT NULL,
  hash    BYTEA  NOT NULL
);
CREATE INDEX audit_by_actor ON audit_entries (actor, seq);
CREATE INDEX audit_by_object ON audit_entries (object, seq);
CREATE INDEX audit_by_action ON audit_entries (action, seq);
CREATE TABLE audit_head (
  one  BIGINT PRIMARY KEY,
  seq  BIGINT NOT NULL,
  hash BYTEA  NOT NULL
);
INSERT INTO audit_head (one, seq, hash) VALUES (1, 0, '');
