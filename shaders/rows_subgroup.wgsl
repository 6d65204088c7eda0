// The entry of a kernel that gives every row to one subgroup, and the sum over a row's invocations.
// **Shapes** none of its own.
// **Grid** ROWS subgroups of SPAN invocations a workgroup, one row each; workgroups fold from x into y.
// **Host** every subgroup of the adapter has SPAN invocations; the kernel defines params.begin and normalise(row, lane, slot).
// **Numbers** f32, in the order of the adapter's subgroup addition.

fn total(value: f32, slot: u32) -> f32 {
    return subgroupAdd(value);
}

@compute @workgroup_size(SPAN * ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) part: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    normalise(params.begin + (group.y * groups.x + group.x) * ROWS + part, lane, 0u);
}
