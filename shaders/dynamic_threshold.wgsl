// s = min(max(quantile(|x0|, ratio), 1), most), the bound of dynamic thresholding (arXiv:2205.11487, section 2.3), for x0 as in prediction.wgsl.
// **Shapes** model_output [1 or 2, P, O4]; factor [1]; state [.., P, C4]; table [2 ..]; bound [1] = (factor, s, 0, 0).
// **Grid** one workgroup of 256 invocations.
// **Host** below and share are rank and fraction of torch.quantile's linear interpolation, ratio * (P * C - 1).
// **Numbers** exact selection: magnitudes order as their bits, eight of which each of four passes decides; a NaN counts as the largest.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> model_output: array<MVec>;      // [1 or 2, P, O4]
@group(0) @binding(2) var<storage, read> factor: array<vec4<f32>>;       // [1]
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;        // [.., P, C4]
@group(0) @binding(4) var<storage, read> table: array<vec4<f32>>;        // [2 ..]
@group(0) @binding(5) var<storage, read_write> bound: array<vec4<f32>>;  // [1]

var<workgroup> histogram: array<atomic<u32>, 256>;
// The bits that are decided, the rank among the values that share them, and how many do.
var<workgroup> decided: vec3<u32>;
var<workgroup> above: atomic<u32>;

fn magnitudes(i: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(estimate(i, guided(i))) & vec4<u32>(0x7fffffffu);
}

// Chooses the next eight bits by their counts.
fn decide(shift: u32) {
    var rank = decided.y;
    for (var bucket = 0u; bucket < 256u; bucket++) {
        let count = atomicLoad(&histogram[bucket]);
        if (rank < count) {
            decided = vec3<u32>(decided.x | (bucket << shift), rank, count);
            return;
        }
        rank -= count;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    if (lane == 0u) {
        decided = vec3<u32>(0u, params.below, 0u);
        atomicStore(&above, 0xffffffffu);
    }
    for (var digit = 0u; digit < 4u; digit++) {
        let shift = 24u - 8u * digit;
        atomicStore(&histogram[lane], 0u);
        workgroupBarrier();
        let prefix = decided.x;
        for (var i = lane; i < params.vectors; i += 256u) {
            let bits = magnitudes(i);
            let valid = present(i);
            for (var k = 0u; k < 4u; k++) {
                // Two shifts, as one by 32 bits is undefined.
                if (valid[k] && ((bits[k] ^ prefix) >> shift) >> 8u == 0u) {
                    atomicAdd(&histogram[(bits[k] >> shift) & 255u], 1u);
                }
            }
        }
        workgroupBarrier();
        if (lane == 0u) {
            decide(shift);
        }
        workgroupBarrier();
    }
    let value = decided.x;
    for (var i = lane; i < params.vectors; i += 256u) {
        let bits = magnitudes(i);
        let valid = present(i);
        for (var k = 0u; k < 4u; k++) {
            if (valid[k] && bits[k] > value) {
                atomicMin(&above, bits[k]);
            }
        }
    }
    workgroupBarrier();
    if (lane == 0u) {
        let low = bitcast<f32>(value);
        var high = low;
        if (params.share > 0.0 && decided.y + 1u >= decided.z) {
            high = bitcast<f32>(atomicLoad(&above));
        }
        let s = min(max(low + (high - low) * params.share, 1.0), params.most);
        bound[0] = vec4<f32>(factor[0].x, s, 0.0, 0.0);
    }
}
