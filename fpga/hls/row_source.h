// row_source.h: where table rows come from.
//
// A row holds the Kw entries of one position and group for one activation, as offset binary. It is
// streamed from a table held on chip (prefill), fetched for the code just found (decode: the same
// memory layout), or computed from the weight codebook. All give the same integers.
#pragma once

#include "engine.h"

namespace lutllm {

// One burst of the plan of a channel.
template <class E>
typename E::job_t make_job(int address, int beats, bool is_index) {
#pragma HLS INLINE
    typename E::job_t job;
    job.address = address;
    job.beats = beats;
    job.is_index = is_index;
    return job;
}

// Records whose indices are read before the first row: as many as the look-up can hold.
template <class E>
int records_ahead(const LinearCall& call) {
    const int records = call.rounds * call.weight_stages;
    const int held = E::INDEX_FIFO / call.subs;
    return held < records ? held : records;
}

// Bursts of a channel, per (round, weight stage) and activation stage: the table, or for each token
// the row of its code. Indices depend on nothing, so those of `records_ahead` records come first and
// are there when the codes are. Those of a later record follow the first burst of rows of the
// record so many before: the look-up begins with a row and then takes indices as they come, so that
// there is room for them.
template <class E>
void plan_tables(typename E::items& codes, typename E::jobs& jobs, LinearCall call) {
    const int index_beats = E::index_beats(call);
    const int row_beats = E::row_beats(call);
    const int table_beats = E::ACT_CENTROIDS * row_beats;
    const int record_beats = E::record_beats(call);
    const int bursts = call.row_fetch ? call.tokens : 1;
    const int records = call.rounds * call.weight_stages;
    const int ahead = records_ahead<E>(call);
    int index = call.channel_base;  // where the next indices lie
ahead_loop:
    for (int i = 0; i < ahead; i++) {
#pragma HLS PIPELINE II=1
        jobs.write(make_job<E>(index, index_beats, true));
        index += record_beats;
    }
    int table = call.channel_base;
record_loop:
    for (int i = 0; i < records; i++) {
        table += index_beats;
    stage_loop:
        for (int t = 0; t < call.act_stages; t++) {
        burst_loop:
            for (int token = 0; token < bursts; token++) {
#pragma HLS PIPELINE II=2
                const int row = call.row_fetch ? codes.read().to_int() : 0;
                jobs.write(make_job<E>(table + row * row_beats,
                                       call.row_fetch ? row_beats : table_beats, false));
                if (t == 0 && token == 0 && i + ahead < records) {
                    jobs.write(make_job<E>(index, index_beats, true));
                    index += record_beats;
                }
            }
            table += table_beats;
        }
    }
}

template <class E>
int count_table_bursts(const LinearCall& call) {
    return call.rounds * call.weight_stages *
           (1 + call.act_stages * (call.row_fetch ? call.tokens : 1));
}

// Beats of all those bursts.
template <class E>
int count_table_beats(const LinearCall& call) {
    const int rows = call.row_fetch ? call.tokens : E::ACT_CENTROIDS;
    return call.rounds * call.weight_stages *
           (E::index_beats(call) + call.act_stages * rows * E::row_beats(call));
}

template <class E>
void load_table(typename E::lead_beats& beats, typename E::beat_t* table, int count) {
load_loop:
    for (int i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
        table[i] = beats.read();
    }
}

// The rows of every token's code, group by group, out of a table [Ka][row_beats].
template <class E>
void serve_rows(const typename E::beat_t* table, typename E::items& codes, typename E::rows& rows,
                int tokens, int groups, int row_beats) {
    typedef typename E::row_packing packing;
    int group = 0, at = 0, slot = 0;
serve_loop:
    for (int i = 0; i < tokens * groups; i++) {
#pragma HLS PIPELINE II=packing::BEATS
        if (group == 0) {
            at = codes.read().to_int() * row_beats;
            slot = 0;
        }
        typename E::row_t row;
        if (packing::PER_BEAT == 1) {
            ap_uint<packing::BEATS * E::AXI_BITS> wide;
        part_loop:
            for (int b = 0; b < packing::BEATS; b++) {
                wide.range(b * E::AXI_BITS + E::AXI_BITS - 1, b * E::AXI_BITS) = table[at + b];
            }
            row = wide.range(E::ROW_BITS - 1, 0);
            at += packing::BEATS;
        } else {
            const int low = slot * packing::SLOT_BITS;
            row = table[at].range(low + E::ROW_BITS - 1, low);
            if (advance(slot, packing::PER_BEAT)) at++;
        }
        rows.write(row);
        advance(group, groups);
    }
}

// Whole tables, loaded while the one before is in use.
template <class E>
void stream_tables(typename E::lead_beats& beats, typename E::items& codes, typename E::rows& rows,
                   LinearCall call) {
    const int row_beats = E::row_beats(call);
    const int passes = E::passes(call);
table_loop:
    for (int p = 0; p < passes; p++) {
#pragma HLS DATAFLOW
        typename E::beat_t table[E::ACT_CENTROIDS * E::MAX_ROW_BEATS];
#pragma HLS BIND_STORAGE variable=table type=RAM_2P impl=URAM
        load_table<E>(beats, table, E::ACT_CENTROIDS * row_beats);
        serve_rows<E>(table, codes, rows, call.tokens, call.groups, row_beats);
    }
}

// Rows as they arrive, already those of the codes.
template <class E>
void pass_rows(typename E::lead_beats& beats, typename E::rows& rows, LinearCall call) {
    WordReader<E::ROW_BITS, E::AXI_BITS> reader;
    int group = 0;
    const int total = E::passes(call) * call.tokens * call.groups;
pass_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=E::row_packing::BEATS
        if (group == 0) reader.align();
        rows.write(reader.read(beats));
        advance(group, call.groups);
    }
}

template <class E>
void rows_from_tables(typename E::lead_beats& beats, typename E::items& codes,
                      typename E::rows& rows, LinearCall call) {
    if (call.row_fetch)
        pass_rows<E>(beats, rows, call);
    else
        stream_tables<E>(beats, codes, rows, call);
}

// Bursts of a channel whose rows are computed: shifts and codebook, then indices.
template <class E>
void plan_codebooks(typename E::jobs& jobs, LinearCall call) {
    const int index_beats = E::index_beats(call);
    const int codebook_beats = E::record_beats(call) - index_beats;
    int record = call.channel_base;
record_loop:
    for (int i = 0; i < call.rounds * call.weight_stages; i++) {
#pragma HLS PIPELINE II=2
        jobs.write(make_job<E>(record + index_beats, codebook_beats, false));
        jobs.write(make_job<E>(record, index_beats, true));
        record += index_beats + codebook_beats;
    }
}

template <class E>
int count_codebook_bursts(const LinearCall& call) {
    return 2 * call.rounds * call.weight_stages;
}

template <class E>
int count_codebook_beats(const LinearCall& call) {
    return call.rounds * call.weight_stages * E::record_beats(call);
}

// saturate((dot - (dot < 0) + 2^(shift - 1)) >> shift) to -limit .. limit - 1, as offset binary:
// halves round away from zero. shift is 0, for no rounding, to 24.
template <class E>
ap_uint<E::TABLE_BITS> table_entry(int dot, int shift, int limit) {
#pragma HLS INLINE
    const int half = (1 << shift) >> 1;
    const int rounded = (dot - (dot < 0 && shift > 0 ? 1 : 0) + half) >> shift;
    const int entry = rounded < -limit ? -limit : rounded > limit - 1 ? limit - 1 : rounded;
    return ap_uint<E::TABLE_BITS>(entry + E::ENTRY_OFFSET);
}

// The row of an integer vector: its dot products with the Kw centroids of a group.
template <class E>
typename E::row_t compute_row(typename E::item_t vector, const ap_uint<E::CODEBOOK_BITS>& codebook,
                              int shift, int limit) {
#pragma HLS INLINE
    typename E::row_t row;
entry_loop:
    for (int k = 0; k < E::WEIGHT_CENTROIDS; k++) {
#pragma HLS UNROLL
        ap_int<16 + bits_for(E::VEC_LEN)> dot = 0;
    component_loop:
        for (int j = 0; j < E::VEC_LEN; j++) {
#pragma HLS UNROLL
            const ap_int<8> x = vector.range(8 * j + 7, 8 * j);
            const int low = k * E::VECTOR_BITS + 8 * j;
            const ap_int<8> c = codebook.range(low + 7, low);
            dot += x * c;
        }
        row.range(k * E::TABLE_BITS + E::TABLE_BITS - 1, k * E::TABLE_BITS) =
            table_entry<E>(dot.to_int(), shift, limit);
    }
    return row;
}

// Shifts and codebooks of a record, which come one behind the other, to a stream each.
template <class E>
void route_codebooks(typename E::lead_beats& in, typename E::record_shifts& shifts,
                     typename E::codebook_beats& codebooks, LinearCall call) {
    const int shift_beats = call.act_stages * E::shift_packing::beats(call.groups);
    const int record_beats = shift_beats + E::codebook_packing::beats(call.groups);
    int at = 0;
route_loop:
    for (int i = 0; i < call.rounds * call.weight_stages * record_beats; i++) {
#pragma HLS PIPELINE II=1
        const typename E::beat_t beat = in.read();
        if (at < shift_beats)
            shifts.write(beat);
        else
            codebooks.write(beat);
        advance(at, record_beats);
    }
}

// Rows from the codebooks, all records in one loop that never drains. A codebook is used as it
// arrives by the first token of the first activation stage, and kept for the others; so are the
// shifts of a stage.
template <class E>
void rows_online(typename E::record_shifts& shift_beats, typename E::codebook_beats& codebooks,
                 typename E::items& vectors, typename E::rows& rows, LinearCall call) {
    ap_uint<8> kept_shifts[E::MAX_GROUPS];
    ap_uint<E::CODEBOOK_BITS> kept[E::MAX_GROUPS];
#pragma HLS BIND_STORAGE variable=kept type=RAM_2P impl=LUTRAM
    const int residual_bits = call.table_bits < E::RESIDUAL_TABLE_BITS ? call.table_bits
                                                                       : E::RESIDUAL_TABLE_BITS;
    WordReader<8, E::AXI_BITS> shift_reader;
    WordReader<E::CODEBOOK_BITS, E::AXI_BITS> reader;
    typename E::item_t vector;
    int weight_stage = 0, stage = 0, token = 0, group = 0;
    const int total = E::passes(call) * call.tokens * call.groups;
row_loop:
    for (int i = 0; i < total; i++) {
#pragma HLS PIPELINE II=E::ROW_INTERVAL
        const bool first = stage == 0 && token == 0;
        if (group == 0) {
            vector = vectors.read();
            shift_reader.align();
            reader.align();
        }
        const ap_uint<8> shift = token == 0 ? shift_reader.read(shift_beats) : kept_shifts[group];
        if (token == 0) kept_shifts[group] = shift;
        const ap_uint<E::CODEBOOK_BITS> codebook = first ? reader.read(codebooks) : kept[group];
        if (first) kept[group] = codebook;
        const int limit = 1 << ((weight_stage < call.wide_stages ? call.table_bits : residual_bits) - 1);
        rows.write(compute_row<E>(vector, codebook, shift.to_int(), limit));
        if (advance(group, call.groups) && advance(token, call.tokens) &&
            advance(stage, call.act_stages)) {
            advance(weight_stage, call.weight_stages);
        }
    }
}

}  // namespace lutllm
