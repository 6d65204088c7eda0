// out[b, i, h] = sum_j softmax_j(scale q[b, i, h] . k[b, j, h]) v[b, j, h] over the keys j <= last[b]: attention of tokens to a cache of keys, or to a text of which the rest is padding (arXiv:1706.03762).
// **Shapes** q [B, TQ, query4], kv [B, KEYS, key4], out [B, TQ, HEADS * D4], in vectors of four; head h of q, k and v starts at vector q_offset, k_offset and v_offset + h * D4 of its row; last [B], the index of the last key in the second place.
// **Grid** a workgroup of LANES invocations owns a query (x) of one head of one batch element (y).
// **Host** last[b] < KEYS; KEYS scores and LANES vectors fit workgroup memory; SPAN is the smallest power of two that holds D4 vectors, at most LANES.
// **Numbers** scores, maximum, sums and outputs in f32; exponents are at most 0, the sum at least 1.

struct Params {
    queries: u32,   // TQ
    heads: u32,
    query4: u32,
    key4: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    scale: f32,     // times log2(e)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<InVec>;          // [B, TQ, query4]
@group(0) @binding(2) var<storage, read> kv: array<InVec>;         // [B, KEYS, key4]
@group(0) @binding(3) var<storage, read> last: array<vec4<u32>>;   // [B]
@group(0) @binding(4) var<storage, read_write> out: array<OutVec>; // [B, TQ, HEADS * D4]

var<workgroup> weights: array<f32, KEYS>;
var<workgroup> parts: array<vec4<f32>, LANES>;

// The sum (or, with PEAK, the maximum) of a number of every invocation.
fn combined(value: f32, lane: u32, peak: bool) -> f32 {
    parts[lane].x = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half = half / 2u) {
        if (lane < half) {
            let other = parts[lane + half].x;
            parts[lane].x = select(parts[lane].x + other, max(parts[lane].x, other), peak);
        }
        workgroupBarrier();
    }
    let result = parts[0].x;
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let batch = group.y / params.heads;
    let head = group.y % params.heads;
    let row = batch * params.queries + group.x;
    let wanted = row * params.query4 + params.q_offset + head * D4;
    let keys = batch * KEYS * params.key4 + head * D4;
    let visible = min(last[batch].y + 1u, KEYS);
    var peak = -1e30;
    for (var j = lane; j < visible; j += LANES) {
        let key = keys + j * params.key4 + params.k_offset;
        var score = 0.0;
        for (var d = 0u; d < D4; d++) {
            score += dot(load_in(q[wanted + d]), load_in(kv[key + d]));
        }
        score *= params.scale;
        weights[j] = score;
        peak = max(peak, score);
    }
    peak = combined(peak, lane, true);
    var sum = 0.0;
    for (var j = lane; j < visible; j += LANES) {
        let weight = exp2(min(weights[j] - peak, 0.0));
        weights[j] = weight;
        sum += weight;
    }
    // Its barriers also show every invocation the others' weights.
    let total = combined(sum, lane, false);
    for (var first = 0u; first < D4; first += SPAN) {
        let d = first + lane % SPAN;
        var value = vec4<f32>();
        if (d < D4) {
            for (var j = lane / SPAN; j < visible; j += LANES / SPAN) {
                value += weights[j] * load_in(kv[keys + j * params.key4 + params.v_offset + d]);
            }
        }
        parts[lane] = value;
        workgroupBarrier();
        if (lane < SPAN && d < D4) {
            for (var part = 1u; part < LANES / SPAN; part++) {
                value += parts[part * SPAN + lane];
            }
            out[(row * params.heads + head) * D4 + d] = store_out(value / total);
        }
        workgroupBarrier();
    }
}
