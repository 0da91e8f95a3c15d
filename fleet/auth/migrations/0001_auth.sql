-- +goose Up
CREATE TABLE auth_accounts (
  id       TEXT   PRIMARY KEY,
  role     TEXT   NOT NULL,
  staff    BIGINT NOT NULL,
  name     TEXT   NOT NULL,
  email    TEXT   NOT NULL,
  disabled BIGINT NOT NULL,
  created  BIGINT NOT NULL
);
CREATE UNIQUE INDEX auth_accounts_by_email ON auth_accounts (email, staff) WHERE email <> '';
CREATE TABLE auth_passkeys (
  id         BYTEA  PRIMARY KEY,
  account    TEXT   NOT NULL REFERENCES auth_accounts (id),
  name       TEXT   NOT NULL,
  credential TEXT   NOT NULL,
  cloned     BIGINT NOT NULL,
  created    BIGINT NOT NULL,
  used       BIGINT NOT NULL
);
CREATE INDEX auth_passkeys_by_account ON auth_passkeys (account);
CREATE TABLE auth_passwords (
  account TEXT   PRIMARY KEY REFERENCES auth_accounts (id),
  hash    TEXT   NOT NULL,
  changed BIGINT NOT NULL
);
CREATE TABLE auth_totp (
  account TEXT   PRIMARY KEY REFERENCES auth_accounts (id),
  secret  BYTEA,
  pending BYTEA,
  step    BIGINT NOT NULL
);
CREATE TABLE auth_recovery (
  account TEXT  NOT NULL REFERENCES auth_accounts (id),
  hash    BYTEA NOT NULL,
  PRIMARY KEY (account, hash)
);
CREATE TABLE auth_identities (
  issuer  TEXT NOT NULL,
  subject TEXT NOT NULL,
  account TEXT NOT NULL REFERENCES auth_accounts (id),
  PRIMARY KEY (issuer, subject)
);
CREATE TABLE auth_links (
  hash    BYTEA  PRIMARY KEY,
  purpose TEXT   NOT NULL,
  account TEXT   NOT NULL,
  email   TEXT   NOT NULL,
  role    TEXT   NOT NULL,
  browser BYTEA,
  expires BIGINT NOT NULL
);
CREATE TABLE auth_ceremonies (
  hash    BYTEA  PRIMARY KEY,
  kind    TEXT   NOT NULL,
  account TEXT   NOT NULL,
  browser BYTEA  NOT NULL,
  data    TEXT   NOT NULL,
  expires BIGINT NOT NULL
);
CREATE TABLE auth_sessions (
  hash    BYTEA  PRIMARY KEY,
  id      TEXT   NOT NULL UNIQUE,
  account TEXT   NOT NULL REFERENCES auth_accounts (id),
  stage   TEXT   NOT NULL,
  method  TEXT   NOT NULL,
  created BIGINT NOT NULL,
  proved  BIGINT NOT NULL,
  seen    BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  address TEXT   NOT NULL,
  agent   TEXT   NOT NULL
);
CREATE INDEX auth_sessions_by_account ON auth_sessions (account);
CREATE TABLE auth_tokens (
  hash    BYTEA  PRIMARY KEY,
  id      TEXT   NOT NULL UNIQUE,
  account TEXT   NOT NULL REFERENCES auth_accounts (id),
  name    TEXT   NOT NULL,
  scopes  TEXT   NOT NULL,
  created BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  used    BIGINT NOT NULL
);
CREATE INDEX auth_tokens_by_account ON auth_tokens (account);
CREATE TABLE auth_browsers (
  hash    BYTEA  NOT NULL,
  account TEXT   NOT NULL REFERENCES auth_accounts (id),
  seen    BIGINT NOT NULL,
  proved  BIGINT NOT NULL,      -- whether all of a sign-in was done in it, not only a link from a mail opened
  PRIMARY KEY (hash, account)
);
CREATE TABLE auth_pace (
  who      TEXT   PRIMARY KEY,
  failures BIGINT NOT NULL,
  until    BIGINT NOT NULL,
  at       BIGINT NOT NULL
);
