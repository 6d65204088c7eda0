// The entry of a kernel that gives every row to SPAN invocations, and the sum over them through workgroup memory.
// **Shapes** none of its own.
// **Grid** ROWS rows of SPAN invocations a workgroup; workgroups fold from x into y.
// **Host** SPAN is a power of two; the kernel defines params.begin and normalise(row, lane, slot), which all invocations run through.
// **Numbers** f32, summed as a tree.

var<workgroup> shared_sum: array<f32, SPAN * ROWS>;

fn total(value: f32, slot: u32) -> f32 {
    let lane = slot % SPAN;
    shared_sum[slot] = value;
    workgroupBarrier();
    for (var half = SPAN / 2u; half > 0u; half = half / 2u) {
        if (lane < half) {
            shared_sum[slot] += shared_sum[slot + half];
        }
        workgroupBarrier();
    }
    let result = shared_sum[slot - lane];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(SPAN * ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) slot: u32,
) {
    normalise(params.begin + (group.y * groups.x + group.x) * ROWS + slot / SPAN, slot % SPAN, slot);
}
