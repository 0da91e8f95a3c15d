-- +goose Up
-- What the fleet must remember of itself, sealed with the key that is not in the
-- database: "check", "authority".
CREATE TABLE fleet_sealed (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

-- When a lease of a box last ended before its time, in microseconds.
CREATE TABLE fleet_broken_leases (
    device TEXT PRIMARY KEY,
    at     BIGINT NOT NULL
);

-- Readings that are to be removed, for the box has left its owner.
CREATE TABLE fleet_wiped (
    device TEXT PRIMARY KEY,
    before BIGINT NOT NULL, -- those older than this, in microseconds
    n      BIGINT NOT NULL  -- of the order; grows
);

-- When the fleet last ran, by a clock that was believed. One row.
CREATE TABLE fleet_clock (one BIGINT PRIMARY KEY, at BIGINT NOT NULL);
