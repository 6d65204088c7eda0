//! Every shader variant that a case or a golden pipeline renders: valid, expressible for Vulkan, Metal and DX12, within
//! WebGPU's default limits, and reading its parameters where the host writes them. Needs no GPU.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

mod backends;

use naga::{AddressSpace, Module, ScalarKind, StorageAccess, TypeInner};

use scumble::graph::Graph;
use scumble::kernels::cases::cases;
use scumble::kernels::{Call, SHADERS, Variant};
use scumble::pipelines::{DalleSettings, KandinskySettings, Request, Settings, dalle_graphs, graphs, kandinsky_graphs};
use scumble::tensor::DType;
use scumble::weights::checkpoint::Checkpoint;
use scumble::weights::dalle::DalleCheckpoint;
use scumble::weights::kandinsky::KandinskyCheckpoint;

use backends::{adapters, parse, write_everywhere};

/// How a variant is launched: bytes of parameters, what it reads and what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    params: usize,
    reads: usize,
    writes: usize,
}

type Variants = HashMap<Variant, Use>;

fn collect(variants: &mut Variants, call: &Call, reads: usize, writes: usize) {
    for launch in &call.launches {
        assert_eq!(launch.ranges.len(), reads + writes, "{}: ranges of another number of bindings", call.variant.stem);
        let this = Use { params: launch.params.len(), reads, writes };
        let known = variants.entry(call.variant.clone()).or_insert(this);
        assert_eq!(*known, this, "{}: one variant, two layouts", call.variant.stem);
    }
}

fn collect_graph(variants: &mut Variants, graph: &Graph) {
    for node in graph.nodes() {
        collect(variants, &node.call, node.inputs.len(), node.outputs.len());
    }
}

fn pipelines() -> Vec<(Checkpoint, Request)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipelines");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("model_index.json").exists() {
            continue;
        }
        let case: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let number = |name: &str| case[name].as_u64().map(|value| value as u32);
        let request = Request {
            width: number("width"),
            height: number("height"),
            steps: number("steps"),
            guidance_scale: case["guidance"].as_f64().map(|value| value as f32),
            guidance_rescale: case["guidance_rescale"].as_f64().unwrap_or(0.0) as f32,
            clip_skip: number("clip_skip"),
            ..Request::default()
        };
        found.push((Checkpoint::open(&folder).unwrap(), request));
    }
    assert!(found.len() >= 8, "only {} golden pipelines", found.len());
    found
}

fn dalle() -> Vec<(DalleCheckpoint, DalleSettings)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/dalle");
    let case = |(name, guidance_scale, top_k)| {
        let settings = DalleSettings { guidance_scale, top_k, temperature: 1.0 };
        (DalleCheckpoint::open(&folder.join(name), None).unwrap(), settings)
    };
    [("flax", 2.0, None), ("min_dalle", 2.0, Some(5)), ("variant", 1.0, Some(5))].map(case).into()
}

fn kandinsky() -> (KandinskyCheckpoint, KandinskySettings) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/kandinsky");
    let checkpoint = KandinskyCheckpoint::open(&folder.join("model"), Some(&folder.join("prior"))).unwrap();
    let request = Request { width: Some(16), height: Some(24), steps: Some(2), ..Request::default() };
    let settings = KandinskySettings::resolve(&checkpoint, &request).unwrap();
    (checkpoint, settings)
}

/// Everything that the cases and the golden pipelines render.
fn variants() -> Variants {
    let mut variants = Variants::new();
    let pipelines = pipelines();
    let dalle = dalle();
    let kandinsky = kandinsky();
    for limits in adapters() {
        for case in cases() {
            for step in case.work(&limits).unwrap().steps {
                collect(&mut variants, &step.call, step.reads.len(), step.writes.len());
            }
        }
        for (checkpoint, settings) in &dalle {
            for precision in [DType::F32, DType::F16] {
                for (stage, graph) in dalle_graphs(checkpoint, limits, precision, settings, false).unwrap() {
                    assert!(graph.fault().is_none(), "{} {stage}: {:?}", checkpoint.name, graph.fault());
                    collect_graph(&mut variants, &graph);
                }
            }
        }
        for precision in [DType::F32, DType::F16] {
            for (stage, graph) in kandinsky_graphs(&kandinsky.0, limits, precision, &kandinsky.1).unwrap() {
                assert!(graph.fault().is_none(), "Kandinsky: {stage}: {:?}", graph.fault());
                collect_graph(&mut variants, &graph);
            }
        }
        for (checkpoint, request) in &pipelines {
            let settings = Settings::resolve(request, checkpoint).unwrap();
            for precision in [DType::F32, DType::F16] {
                for (stage, graph) in graphs(checkpoint, limits, precision, &settings).unwrap() {
                    assert!(graph.fault().is_none(), "{} {stage}: {:?}", checkpoint.name, graph.fault());
                    collect_graph(&mut variants, &graph);
                }
            }
        }
    }
    variants
}

/// Bindings are 0..n of group 0: the parameters, what is read, what is written; at most eight storage buffers.
fn check_bindings(variant: &Variant, module: &Module, wanted: Use) {
    let mut bindings = BTreeMap::new();
    for (_, global) in module.global_variables.iter() {
        if let Some(binding) = &global.binding {
            assert_eq!(binding.group, 0, "{variant:?}");
            bindings.insert(binding.binding as usize, global);
        }
    }
    let numbers: Vec<usize> = bindings.keys().copied().collect();
    assert_eq!(numbers, (0..=wanted.reads + wanted.writes).collect::<Vec<_>>(), "{variant:?}: bindings");
    let mut storage = 0;
    for (number, global) in bindings {
        let texture = matches!(module.types[global.ty].inner, TypeInner::Image { .. });
        assert_eq!(texture, number > 0 && variant.staged().contains(&(number - 1)), "{variant:?}: binding {number}");
        let kind = match global.space {
            AddressSpace::Uniform => "parameters",
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => "writes",
            AddressSpace::Storage { .. } | AddressSpace::Handle => "reads",
            _ => "something else",
        };
        let expected = match number {
            0 => "parameters",
            _ if number <= wanted.reads => "reads",
            _ => "writes",
        };
        assert_eq!(kind, expected, "{variant:?}: binding {number}");
        storage += u32::from(matches!(global.space, AddressSpace::Storage { .. }));
    }
    assert!(storage <= 8, "{variant:?}: {storage} storage buffers");
}

/// WebGPU's defaults: 256 invocations and 16 KiB of workgroup memory.
fn check_workgroup(variant: &Variant, module: &Module) {
    let [entry] = module.entry_points.as_slice() else { panic!("{variant:?}: not one entry point") };
    assert_eq!(entry.name, "main", "{variant:?}");
    // Without an optional feature WebGPU's default limits hold; else those of the adapters that variants are made for.
    let (invocations, most) = if variant.enables.is_empty() { (256, 16384) } else { (1024, 49152) };
    assert!(entry.workgroup_size.iter().product::<u32>() <= invocations, "{variant:?}: {:?}", entry.workgroup_size);
    assert!(entry.workgroup_size.iter().all(|size| *size > 0 && *size <= invocations), "{variant:?}");
    let shared = module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::WorkGroup);
    let memory: u32 = shared.map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx())).sum();
    assert!(memory <= most, "{variant:?}: {memory} bytes of workgroup memory");
}

/// Name and type of every member of the shader's `Params`, which must follow each other without holes.
fn members(variant: &Variant, module: &Module) -> Vec<(String, &'static str)> {
    let found = module.types.iter().find_map(|(_, ty)| match &ty.inner {
        TypeInner::Struct { members, .. } if ty.name.as_deref() == Some("Params") => Some(members),
        _ => None,
    });
    let members = found.unwrap_or_else(|| panic!("{variant:?}: no Params"));
    let member = |(index, member): (usize, &naga::StructMember)| {
        assert_eq!(member.offset as usize, 4 * index, "{variant:?}: Params have holes");
        let kind = match module.types[member.ty].inner {
            TypeInner::Scalar(naga::Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
            TypeInner::Scalar(naga::Scalar { kind: ScalarKind::Float, width: 4 }) => "f32",
            _ => panic!("{variant:?}: {:?} is neither u32 nor f32", member.name),
        };
        (member.name.clone().unwrap_or_default(), kind)
    };
    members.iter().enumerate().map(member).collect()
}

/// A `Params` of `src/kernels`: the shaders that its comment names, its fields.
struct HostParams {
    shaders: Vec<String>,
    fields: Vec<(String, String)>,
}

/// Reads the structs out of the source, so that names and order are compared and not only sizes.
fn host_params() -> Vec<HostParams> {
    const MARK: &str = "/// The uniform of ";
    let mut all = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernels")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split(MARK).skip(1) {
            let (comment, rest) = part.split_once('\n').unwrap();
            let shaders = comment.split('`').filter_map(|word| word.strip_prefix("shaders/"));
            let shaders = shaders.filter_map(|word| word.strip_suffix(".wgsl")).map(str::to_owned).collect();
            assert!(rest.contains("#[repr(C)]"), "{path:?}");
            let body = rest.split_once("Params {\n").unwrap().1.split_once("\n}").unwrap().0;
            let mut fields = Vec::new();
            for line in body.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
                let (name, kind) = line.trim_end_matches(',').split_once(": ").unwrap();
                let name = name.trim_start_matches("pub ").to_owned();
                match kind.strip_prefix("[u32; ").and_then(|rest| rest.strip_suffix(']')) {
                    Some(count) => {
                        fields.extend((0..count.parse().unwrap()).map(|_| (name.clone(), "u32".to_owned())));
                    }
                    None => fields.push((name, kind.to_owned())),
                }
            }
            all.push(HostParams { shaders, fields });
        }
    }
    all
}

fn check_params(variant: &Variant, module: &Module, wanted: Use, host: &[HostParams]) {
    let host = host.iter().find(|params| params.shaders.iter().any(|stem| stem == variant.stem));
    let host = host.unwrap_or_else(|| panic!("no Params in src/kernels say `shaders/{}.wgsl`", variant.stem));
    assert_eq!(wanted.params, 4 * host.fields.len(), "{variant:?}: bytes of a launch's parameters");
    let members = members(variant, module);
    assert!(members.len() <= host.fields.len(), "{variant:?}: the shader's Params are larger than the host's");
    let padding = |name: &str| name.starts_with("pad") && !name.starts_with("pad_");
    for (member, field) in members.iter().zip(&host.fields) {
        if padding(&member.0) && padding(&field.0) {
            continue;
        }
        assert_eq!((member.0.as_str(), member.1), (field.0.as_str(), field.1.as_str()), "{variant:?}");
    }
    // Shaders that share a struct may end before it does; one alone leaves out padding only.
    let rest = &host.fields[members.len()..];
    assert!(host.shaders.len() > 1 || rest.iter().all(|(name, _)| padding(name)), "{variant:?}: {rest:?}");
}

#[test]
fn every_variant_is_sound() {
    let variants = variants();
    let host = host_params();
    for (variant, wanted) in &variants {
        let (module, info) = parse(variant);
        check_bindings(variant, &module, *wanted);
        check_workgroup(variant, &module);
        check_params(variant, &module, *wanted, &host);
        write_everywhere(variant, &module, &info);
    }
    // What other shaders begin or end with.
    let mut rendered: BTreeSet<&str> = [
        "matrix_epilogue",
        "matrix_finish",
        "matrix_rows",
        "attention_rows",
        "pair",
        "prediction",
        "rows_subgroup",
        "rows_workgroup",
        // Roofs that not every adapter has (`tests/roofs.rs`).
        "roof_coop",
        "roof_half",
    ]
    .into();
    rendered.extend(variants.keys().map(|variant| variant.stem));
    let known: BTreeSet<&str> = SHADERS.iter().map(|(stem, _)| *stem).collect();
    assert_eq!(rendered, known, "some shader is rendered by no case and no pipeline");
}

#[test]
fn every_shader_file_is_known() {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap();
    let stem = |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let files: BTreeSet<String> = files.map(|entry| stem(entry.unwrap().path())).collect();
    let known: BTreeSet<String> = SHADERS.iter().map(|(stem, _)| (*stem).to_owned()).collect();
    assert_eq!(files, known);
}
