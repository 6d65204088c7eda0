// token = argmax_v p[v] / q[v], p[v] = exp((l[v] - max l) / temperature) where l[v] is among the top_k, else 0; l = u + scale (c - u): guidance of logits (arXiv:2207.12598), the top_k (arXiv:1805.04833), and a draw from what is left as torch.multinomial makes it, q being exponentials.
// **Shapes** logits [B, width], of which the first V numbers count, row 0 u and row 1 c, or the only row; noise [V4] q; state [B] and next [B]: token, place, fault; drawn [1]: token, 0, fault.
// **Grid** one workgroup of 256 invocations, each taking every 256th vector.
// **Host** 1 <= top_k; temperature > 0; q > 0.
// **Numbers** f32. Ties at the threshold all stay; of equal quotients the lowest index is drawn. A logit that is not finite sets the fault and draws token 0.

struct Params {
    count: u32,        // V
    width: u32,        // vectors of a row of logits
    batch: u32,        // rows of state
    top_k: u32,
    scale: f32,
    temperature: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>;      // [B, width]
@group(0) @binding(2) var<storage, read> noise: array<vec4<f32>>;       // [V4]
@group(0) @binding(3) var<storage, read> state: array<vec4<u32>>;       // [B]
@group(0) @binding(4) var<storage, read_write> next: array<vec4<u32>>;  // [B]
@group(0) @binding(5) var<storage, read_write> drawn: array<vec4<u32>>; // [1]

var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> fault: atomic<u32>;
var<workgroup> prefix: u32;
var<workgroup> wanted: u32;
var<workgroup> best: array<f32, 256>;
var<workgroup> best_index: array<u32, 256>;

fn guided(i: u32) -> vec4<f32> {
    let first = logits[i];
    if (GUIDED == 1u) {
        return first + params.scale * (logits[params.width + i] - first);
    }
    return first;
}

// Larger numbers have larger keys.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The key of the top_k-th largest, eight bits at a time from the highest: counts of each value of these bits among the keys
// that begin like it, then the value at which the count from above reaches what is wanted.
fn threshold(lane: u32) -> u32 {
    if (lane == 0u) {
        prefix = 0u;
        wanted = min(params.top_k, params.count);
    }
    for (var shift = 24i; shift >= 0i; shift -= 8i) {
        atomicStore(&bins[lane], 0u);
        workgroupBarrier();
        let begin = prefix;
        // The bits above those that are counted.
        let known = select(0xffffff00u << u32(shift), 0u, shift == 24i);
        for (var i = lane; i * 4u < params.count; i += 256u) {
            let values = guided(i);
            for (var c = 0u; c < 4u && i * 4u + c < params.count; c++) {
                let key = key_of(values[c]);
                if ((key & known) == begin) {
                    atomicAdd(&bins[(key >> u32(shift)) & 255u], 1u);
                }
            }
        }
        workgroupBarrier();
        if (lane == 0u) {
            var left = wanted;
            var bin = 255u;
            for (; bin > 0u; bin--) {
                let here = atomicLoad(&bins[bin]);
                if (here >= left) {
                    break;
                }
                left -= here;
            }
            wanted = left;
            prefix = begin | (bin << u32(shift));
        }
        workgroupBarrier();
    }
    return prefix;
}

// Leaves the largest of all invocations' `value`, and the lowest index that has it, in the first places.
fn reduce(value: f32, index: u32, lane: u32) {
    best[lane] = value;
    best_index[lane] = index;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half = half / 2u) {
        if (lane < half) {
            let other = best[lane + half];
            let index = best_index[lane + half];
            if (other > best[lane] || (other == best[lane] && index < best_index[lane])) {
                best[lane] = other;
                best_index[lane] = index;
            }
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    if (lane == 0u) {
        atomicStore(&fault, 0u);
    }
    workgroupBarrier();
    var peak = -3.4e38;
    for (var i = lane; i * 4u < params.count; i += 256u) {
        let values = guided(i);
        for (var c = 0u; c < 4u && i * 4u + c < params.count; c++) {
            // All bits of the exponent: infinity or NaN, which comparisons do not show on every device.
            if ((bitcast<u32>(values[c]) & 0x7f800000u) == 0x7f800000u) {
                atomicOr(&fault, 1u);
            }
            peak = max(peak, values[c]);
        }
    }
    reduce(peak, 0u, lane);
    let highest = best[0];
    var least = 0u;
    if (TOP_K == 1u) {
        least = threshold(lane);
    }
    workgroupBarrier();
    var value = -1.0;
    var index = 0u;
    for (var i = lane; i * 4u < params.count; i += 256u) {
        let values = guided(i);
        let quotients = exp((values - highest) / params.temperature) / noise[i];
        for (var c = 0u; c < 4u && i * 4u + c < params.count; c++) {
            if (key_of(values[c]) >= least && quotients[c] > value) {
                value = quotients[c];
                index = i * 4u + c;
            }
        }
    }
    reduce(value, index, lane);
    if (lane < params.batch) {
        let bad = atomicLoad(&fault);
        let token = select(best_index[0], 0u, bad != 0u);
        next[lane] = vec4<u32>(token, state[lane].y + 1u, state[lane].z | bad, 0u);
        if (lane == 0u) {
            drawn[0] = vec4<u32>(token, 0u, bad, 0u);
        }
    }
}
