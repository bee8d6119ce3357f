-- The database of the CRM before eventsync is used: its tables and rows.
-- The worker of crm captures these rows, and every later foreign write.

CREATE TABLE customer (
    customer_id bigint PRIMARY KEY,
    full_name text NOT NULL,
    email text,
    city text NOT NULL DEFAULT '',
    standing text NOT NULL DEFAULT 'lead' CHECK (standing IN ('lead', 'active', 'former')),
    balance numeric(12, 2) NOT NULL DEFAULT 0,
    customer_since date
);

CREATE TABLE sales_order (
    order_id bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customer,
    placed_on date,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'shipped', 'paid', 'cancelled')),
    total numeric(12, 2) NOT NULL DEFAULT 0
);

INSERT INTO customer
SELECT n,
    given || ' ' || family,
    lower(given) || '.' || n || '@example.com',
    (ARRAY['Oslo', 'Lyon', 'Porto', 'Graz', 'Cork', 'Kraków'])[1 + n % 6],
    (ARRAY['active', 'active', 'active', 'lead', 'former'])[1 + n % 5],
    round((n * 7919 % 100000) / 100.0, 2),
    DATE '2015-01-01' + n * 13 % 4000
FROM generate_series(1, 200) AS n,
    LATERAL (
        SELECT (ARRAY['Ann', 'Bao', 'Carla', 'Dmitri', 'Esi', 'Farid', 'Grete'])[1 + n % 7] AS given,
            (ARRAY['Aalto', 'Berg', 'Costa', 'Dubois', 'Eze', 'Fischer', 'Gupta', 'Hansen', 'Ito',
                'Jensen', 'Kowalska'])[1 + n % 11] AS family
    ) AS person;

INSERT INTO sales_order
SELECT 1000 + n,
    1 + n * 37 % 200,
    DATE '2026-01-01' + n % 300,
    (ARRAY['open', 'shipped', 'paid', 'paid', 'cancelled'])[1 + n % 5],
    round((500 + n * 104729 % 90000) / 100.0, 2)
FROM generate_series(1, 500) AS n;
