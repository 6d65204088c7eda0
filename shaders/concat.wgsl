// y = [a | b] along the channels.
// **Shapes** a [rows, A4], b [rows, B4], y [rows, C4] with C = A + B channels.
// **Grid** one invocation an output vector; workgroups of 64 fold from x into y.
// **Host** params.channels_a and params.channels are A and C; bases as in every banded kernel.
// **Numbers** a copy; the same element type in and out loses nothing.

struct Params {
    begin: u32,       // first output vector of this launch
    end: u32,         // one past the last
    width: u32,       // C4
    width_a: u32,     // A4
    width_b: u32,     // B4
    channels_a: u32,  // A
    channels: u32,    // C
    a_base: u32,
    b_base: u32,
    y_base: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<AVec>;        // [rows, A4]
@group(0) @binding(2) var<storage, read> b: array<AVec>;        // [rows, B4]
@group(0) @binding(3) var<storage, read_write> y: array<AVec>;  // [rows, C4]

fn element(row: u32, channel: u32) -> f32 {
    if (channel < params.channels_a) {
        return load_a(a[row * params.width_a + channel / 4u - params.a_base])[channel % 4u];
    }
    if (channel < params.channels) {
        let c = channel - params.channels_a;
        return load_a(b[row * params.width_b + c / 4u - params.b_base])[c % 4u];
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = params.begin + (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.end) {
        return;
    }
    let row = i / params.width;
    let column = i % params.width;
    let out = i - params.y_base;
    if (params.channels_a % 4u == 0u) {
        if (column < params.width_a) {
            y[out] = a[row * params.width_a + column - params.a_base];
        } else {
            y[out] = b[row * params.width_b + column - params.width_a - params.b_base];
        }
        return;
    }
    let c = column * 4u;
    let v = vec4<f32>(element(row, c), element(row, c + 1u), element(row, c + 2u), element(row, c + 3u));
    y[out] = store_a(v);
}
