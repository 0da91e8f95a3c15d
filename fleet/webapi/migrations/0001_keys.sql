-- +goose Up
CREATE TABLE webapi_keys (
  account TEXT   NOT NULL,
  idem    TEXT   NOT NULL,
  request BYTEA  NOT NULL,
  state   TEXT   NOT NULL,
  answer  BYTEA  NOT NULL,
  at      BIGINT NOT NULL,
  PRIMARY KEY (account, idem)
);
CREATE INDEX webapi_keys_by_at ON webapi_keys (at);
