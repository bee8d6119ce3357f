"""The circuit breaker: its states, and since when."""

from __future__ import annotations

from eventsync.monitoring.circuit_breaker import CircuitBreaker, CircuitState


def test_circuit_states():
    """Half open follows only open, and ``since`` is the time of the first failure."""
    now = [1.0]
    circuit = CircuitBreaker(now=lambda: now[0])
    circuit.probe()
    assert circuit.state is CircuitState.CLOSED
    now[0] = 2.0
    circuit.open(OSError("x"))
    now[0] = 3.0
    circuit.probe()
    assert circuit.state is CircuitState.HALF_OPEN
    circuit.open(OSError("y"))
    assert (circuit.state, circuit.since, circuit.opened) == (CircuitState.OPEN, 2.0, 1)
    circuit.close()
    assert (circuit.since, circuit.error) == (3.0, "")
