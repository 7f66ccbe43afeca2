"""Speed, size, fit and power of a design before synthesis, from the configuration of its engine.

quantity    numbers that carry their formula
timing      what the source does not say: latencies, memory efficiency, how calls follow each other
engine      cycles and transactions of every process of a LUT linear engine
decoder     a whole model: prefill and decode through engine, attention and head
memory      bytes behind and over every port, capacity
resources   LUT, FF, DSP, BRAM and URAM of every block; power
published   the published accelerator, described by itself, to check the method against
explore     the best engine for a budget
csynth      estimate beside a synthesis report
docs/PERFORMANCE_MODEL.md explains the equations and says what is fitted and what assumed.
"""
