// dataflow.h: how a dataflow region is written, once, for synthesis and for simulation.
//
// Under `#pragma HLS DATAFLOW` a region is a list of calls, one per process. Vitis HLS sees exactly
// that. The simulation of this project runs each call as a coroutine over bounded streams instead,
// so that deadlocks show. The name is what reports call the process.
#pragma once

#include <hls_stream.h>

#if defined(LUTLLM_SIMULATION) && !defined(LUTLLM_SEQUENTIAL)
#define LUTLLM_REGION hls::sim::Region lutllm_region
#define LUTLLM_PROCESS(name, ...) lutllm_region.spawn(name, [&] { __VA_ARGS__; })
#else
#define LUTLLM_REGION
#define LUTLLM_PROCESS(name, ...) __VA_ARGS__
#endif

// A process that does the same for every call of a run of an engine. Each goes on to the next call
// when it is done with one: memory is read while other processes still work on the call before.
#define LUTLLM_CALLS(name, calls, ...)                                                    \
    LUTLLM_PROCESS(name, for (int lutllm_n = 0; lutllm_n < (calls).count(); lutllm_n++) { \
        if ((calls).skips(lutllm_n)) continue;                                            \
        const LinearCall call = (calls).at(lutllm_n);                                     \
        __VA_ARGS__;                                                                      \
    })

#if defined(LUTLLM_SIMULATION)
#define LUTLLM_NAME_STREAMS(streams, count)                \
    for (int lutllm_i = 0; lutllm_i < count; lutllm_i++) { \
        streams[lutllm_i].set_name(#streams, lutllm_i);    \
    }
#else
#define LUTLLM_NAME_STREAMS(streams, count)
#endif
