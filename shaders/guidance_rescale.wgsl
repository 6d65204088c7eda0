// factor = phi * std(c) / std(u + g (c - u)) + 1 - phi, guidance rescale (arXiv:2305.08891, section 3.4).
// **Shapes** model_output [2, P, C4]: without the prompt (u), then with it (c); factor [1].
// **Grid** one workgroup of 256 invocations.
// **Host** params.elements counts true elements (P * C); pad channels are zero.
// **Numbers** f32, two passes: means first, then the squares about them, so that a large mean does not cancel.

struct Params {
    vectors: u32,   // P * C4
    width: u32,     // C4
    channels: u32,  // C
    elements: u32,  // P * C
    guidance: f32,
    phi: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> model_output: array<MVec>;      // [2, P, C4]
@group(0) @binding(2) var<storage, read_write> factor: array<vec4<f32>>; // [1]

var<workgroup> shared_sum: array<vec2<f32>, 256>;

fn total(value: vec2<f32>, lane: u32) -> vec2<f32> {
    shared_sum[lane] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half = half / 2u) {
        if (lane < half) {
            shared_sum[lane] += shared_sum[lane + half];
        }
        workgroupBarrier();
    }
    let result = shared_sum[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = vec2<f32>();
    for (var i = lane; i < params.vectors; i += 256u) {
        let u = load_m(model_output[i]);
        let c = load_m(model_output[params.vectors + i]);
        sum += vec2<f32>(dot(c, vec4<f32>(1.0)), dot(u + params.guidance * (c - u), vec4<f32>(1.0)));
    }
    let mean = total(sum, lane) / f32(params.elements);
    var squares = vec2<f32>();
    for (var i = lane; i < params.vectors; i += 256u) {
        let valid = vec4<u32>(0u, 1u, 2u, 3u) + i % params.width * 4u < vec4<u32>(params.channels);
        let u = load_m(model_output[i]);
        let c = load_m(model_output[params.vectors + i]);
        let text = select(vec4<f32>(), c - mean.x, valid);
        let guided = select(vec4<f32>(), u + params.guidance * (c - u) - mean.y, valid);
        squares += vec2<f32>(dot(text, text), dot(guided, guided));
    }
    let variance = total(squares, lane);
    if (lane == 0u) {
        factor[0] = vec4<f32>(params.phi * sqrt(variance.x / variance.y) + 1.0 - params.phi, 0.0, 0.0, 0.0);
    }
}
