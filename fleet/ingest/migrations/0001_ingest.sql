-- +goose Up
-- +goose StatementBegin
CREATE TABLE ingest_seen (
    device  TEXT   NOT NULL,
    journal BIGINT NOT NULL, -- the bits of Origin.Journal
    low     BIGINT NOT NULL, -- the bits of a number: it and all below it are seen
    above   BYTEA  NOT NULL, -- bit i: low + 1 + i is seen
    used    BIGINT NOT NULL, -- counts the device's journals: the greatest is the newest
    PRIMARY KEY (device, journal)
);
-- +goose StatementEnd
