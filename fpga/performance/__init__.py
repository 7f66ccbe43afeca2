"""Speed, size, fit and power of a design before synthesis, from the configuration of its engine.

quantity    numbers that carry their formula
timing      what the source does not say: latencies, memory efficiency, how calls follow each other
run         transactions and busy cycles of every process of a linear
engine      what a call of a LUT linear engine takes
blocks      the steps between two runs of an engine
decoder     a whole model: prefill and decode
memory      bytes behind and over every port, capacity
resources   LUT, FF, DSP, BRAM and URAM of every block; power
published   the published accelerator, described by itself, to check the method against
estimate    all of it for one design
explore     the best design for a budget
csynth      estimate beside a synthesis report
docs/PERFORMANCE_MODEL.md explains the equations and says what is fitted and what assumed.
"""
