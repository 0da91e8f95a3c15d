-- +goose Up
CREATE TABLE job_jobs (
  id TEXT PRIMARY KEY,
  device TEXT NOT NULL,
  kind TEXT NOT NULL,
  args TEXT NOT NULL,
  state TEXT NOT NULL,
  created BIGINT NOT NULL,
  deadline BIGINT NOT NULL,
  finished BIGINT NOT NULL,
  account TEXT NOT NULL,
  staff BIGINT NOT NULL,     -- whether it was ordered as one of the staff
  idem TEXT NOT NULL,        -- idempotency key
  bulk TEXT NOT NULL,        -- the same for jobs ordered together
  version BIGINT NOT NULL,   -- of the newest status
  detail TEXT NOT NULL,
  results TEXT NOT NULL,
  cancel_until BIGINT NOT NULL, -- when the fleet stops waiting for the box to end it; 0: not canceled
  sent BIGINT NOT NULL,      -- whether the broker ever had it
  round BIGINT NOT NULL,     -- grows whenever the broker must be given it again
  delivered BIGINT NOT NULL  -- the round that the broker has
);
CREATE INDEX job_jobs_device ON job_jobs (device, id);
CREATE INDEX job_jobs_bulk ON job_jobs (bulk, id) WHERE bulk <> '';
CREATE UNIQUE INDEX job_jobs_idem ON job_jobs (account, idem) WHERE idem <> '';
CREATE INDEX job_jobs_pending ON job_jobs (device, id) WHERE finished = 0;
CREATE INDEX job_jobs_deadline ON job_jobs (deadline) WHERE finished = 0;
CREATE INDEX job_jobs_canceling ON job_jobs (cancel_until) WHERE finished = 0 AND cancel_until <> 0;
CREATE INDEX job_jobs_finished ON job_jobs (finished) WHERE finished <> 0;
CREATE INDEX job_jobs_open ON job_jobs (id) WHERE finished = 0;
CREATE INDEX job_jobs_undelivered ON job_jobs (id) WHERE delivered < round;

-- What boxes said, once each.
CREATE TABLE job_statuses (
  device TEXT NOT NULL, journal BIGINT NOT NULL, seq BIGINT NOT NULL,
  job TEXT NOT NULL, state TEXT NOT NULL, version BIGINT NOT NULL,
  at BIGINT NOT NULL, received BIGINT NOT NULL, detail TEXT NOT NULL, taken BIGINT NOT NULL,
  PRIMARY KEY (device, journal, seq)
);
CREATE INDEX job_statuses_job ON job_statuses (job, received);
CREATE INDEX job_statuses_received ON job_statuses (received);

CREATE TABLE job_audit (id TEXT PRIMARY KEY, body TEXT NOT NULL);
