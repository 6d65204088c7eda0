// Guidance e = (u + g (c - u)) * factor (arXiv:2207.12598) and the data estimate x0 = a s + b e, from a model's output.
// **Shapes** model_output [1 or 2, P, O4] with O = C channels, or 2 C where SPLIT is 1; state [.., P, C4]; table [2 ..].
// **Grid** none: a prelude of the solver's shaders, which bind model_output, factor, state and table.
// **Host** table = (a, b, ..), (g, ..); SHIFT = C mod 4, where the second half of the channels begins within a vector.
// **Numbers** f32; pad channels of e are zero, also where the second half shares a vector with the first.

struct Params {
    vectors: u32,        // P * C4
    width: u32,          // C4
    output_width: u32,   // O4
    channels: u32,       // C
    below: u32,          // dynamic_threshold: rank of the smaller neighbour
    share: f32,          // dynamic_threshold: how far the quantile lies towards the larger one
    most: f32,           // dynamic_threshold: the largest bound
    pad0: u32,
}

fn present(i: u32) -> vec4<bool> {
    return vec4<u32>(0u, 1u, 2u, 3u) + i % params.width * 4u < vec4<u32>(params.channels);
}

fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

fn guided(i: u32) -> vec4<f32> {
    var at = i;
    var second = params.vectors;
    if (SPLIT == 1u) {
        at = i / params.width * params.output_width + i % params.width;
        second = params.vectors / params.width * params.output_width;
    }
    var e = load_m(model_output[at]);
    if (GUIDED == 1u) {
        let c = load_m(model_output[second + at]);
        e = (e + table[1].x * (c - e)) * factor[0].x;
    }
    if (SPLIT == 1u && SHIFT != 0u) {
        e = select(vec4<f32>(), e, present(i));
    }
    return e;
}

fn estimate(i: u32, e: vec4<f32>) -> vec4<f32> {
    return table[0].x * state[i] + table[0].y * e;
}
