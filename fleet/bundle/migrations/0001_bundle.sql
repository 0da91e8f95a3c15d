-- +goose Up
CREATE TABLE bundle_bundles (
  id TEXT PRIMARY KEY,      -- names the blob too
  device TEXT NOT NULL,
  job TEXT NOT NULL UNIQUE, -- that asked for it
  digest TEXT NOT NULL,     -- SHA-256 of the upload, in hex
  size BIGINT NOT NULL,     -- of the upload
  entries BIGINT NOT NULL,
  created BIGINT NOT NULL
);
CREATE INDEX bundle_bundles_device ON bundle_bundles (device, id);
CREATE INDEX bundle_bundles_created ON bundle_bundles (created);

CREATE TABLE bundle_audit (id TEXT PRIMARY KEY, body TEXT NOT NULL);
