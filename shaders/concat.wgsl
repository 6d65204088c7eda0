// y = [a | b] along the channels.
// **Shapes** a [rows, A4], b [rows, B4], y [rows, C4] with C = A + B channels.
// **Grid** four output vectors an invocation, 64 apart; workgroups of 64 fold from x into y.
// **Host** params.channels_a and params.channels are A and C; 64 vectors are step_rows rows and step_columns; bases as in every banded kernel.
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
    step_rows: u32,     // 64 / C4
    step_columns: u32,  // 64 % C4
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

fn vector(row: u32, column: u32) -> AVec {
    if (params.channels_a % 4u == 0u) {
        if (column < params.width_a) {
            return a[row * params.width_a + column - params.a_base];
        }
        return b[row * params.width_b + column - params.width_a - params.b_base];
    }
    let c = column * 4u;
    return store_a(vec4<f32>(element(row, c), element(row, c + 1u), element(row, c + 2u), element(row, c + 3u)));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = params.begin + (group.y * groups.x + group.x) * 256u + lane;
    var row = first / params.width;
    var column = first % params.width;
    for (var k = 0u; k < 4u; k++) {
        if (first + k * 64u < params.end) {
            y[first + k * 64u - params.y_base] = vector(row, column);
        }
        row += params.step_rows;
        column += params.step_columns;
        if (column >= params.width) {
            column -= params.width;
            row += 1u;
        }
    }
}
