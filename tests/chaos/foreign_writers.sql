-- The tables of an application that knows nothing of eventsync.
CREATE TABLE "Note" (
    id bigint PRIMARY KEY,
    title varchar(40) NOT NULL,
    pages bigint NOT NULL
);
CREATE TABLE "Person" (
    id bigint PRIMARY KEY,
    name varchar(40) NOT NULL DEFAULT '',
    city text NOT NULL DEFAULT '',
    score bigint NOT NULL DEFAULT 0,
    email text
);
