-- Transactions that were answered, for servers that did not hear the answer and repeat them.
CREATE TABLE received_transactions (
    origin TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    received_ts BIGINT NOT NULL,
    answer BYTES NOT NULL,
    PRIMARY KEY (origin, txn_id)
);

CREATE INDEX received_transactions_ts ON received_transactions (received_ts);

-- Events that other servers sent and that wait for their room, in the order in which they came.
CREATE TABLE staged_pdus (
    staged_id SERIAL_KEY,
    room_id TEXT NOT NULL,
    origin TEXT NOT NULL,
    pdu BYTES NOT NULL
);

CREATE INDEX staged_pdus_room ON staged_pdus (room_id, staged_id);
