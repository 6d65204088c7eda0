//! Self-test, tuning and caches: wrong and slow candidates must come out as such, and what is kept must be found again.

use std::process::Command;
use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::kernels::cases::{Candidate, Case, Work, self_tests};
use scumble::kernels::tuning::Class;
use scumble::kernels::{Call, KernelSet, Limits};
use scumble::tensor::DType;
use scumble::tune::{self, Effort, Progress, Record, Subject, contest, self_test};

/// A change to the calls of one candidate.
type Change = (&'static str, fn(&mut Call));

/// A case's own way to run, then changed ones.
struct Changed {
    case: Case,
    changes: Vec<Change>,
}

impl Subject for Changed {
    fn case(&self) -> &Case {
        &self.case
    }

    fn candidates(&self, limits: &Limits) -> Option<(Class, Vec<Candidate>)> {
        let (class, own) = self.case.candidates(limits)?;
        let own = own.into_iter().next_back()?;
        let named = |(name, _): &Change| Candidate { name: (*name).to_owned(), ..own.clone() };
        let changed = self.changes.iter().map(named).collect::<Vec<_>>();
        Some((class, changed.into_iter().chain([own.clone()]).collect()))
    }

    fn work(&self, candidate: usize, limits: &Limits) -> Option<Work> {
        let count = self.case.candidates(limits)?.1.len();
        let mut work = self.case.work_with(count - 1, limits)?;
        if let Some((_, change)) = self.changes.get(candidate) {
            work.steps.iter_mut().for_each(|step| change(&mut step.call));
        }
        Some(work)
    }
}

fn constant(call: &mut Call, name: &str, change: impl Fn(u32) -> u32) {
    let found = call.variant.constants.iter_mut().find(|(known, _)| *known == name);
    let (_, value) = found.unwrap_or_else(|| panic!("no constant {name}"));
    *value = change(*value);
}

/// An activation that nobody asked for; with gates, which have one of their own, gates taken for values.
fn wrong_numbers(call: &mut Call) {
    constant(call, "ACTIVATION", |_| 2);
    constant(call, "HALVES", |_| 1);
}

/// As a driver's compiler would refuse it.
fn refused(call: &mut Call) {
    call.variant.constants.retain(|(name, _)| *name != "ACTIVATION");
}

/// The last rows stay as nobody wrote them.
fn rows_left_out(call: &mut Call) {
    call.launches.iter_mut().for_each(|launch| launch.workgroups[0] -= 1);
}

fn many_times(call: &mut Call) {
    call.launches = call.launches.iter().cycle().take(60 * call.launches.len()).cloned().collect();
}

/// The device of a tile run; kernels for GPUs run on CPU adapters too.
fn gpu() -> Arc<Gpu> {
    Arc::new(Gpu::open(&GpuOptions { kernels: Some(KernelSet::Tile), ..GpuOptions::from_environment() }).unwrap())
}

fn subject(dtype: DType, name: &str, changes: Vec<Change>) -> Changed {
    let case = self_tests(dtype).into_iter().find(|case| case.name.contains(name));
    Changed { case: case.unwrap_or_else(|| panic!("no case is called {name}")), changes }
}

#[test]
fn wrong_candidates_come_out_unfit() {
    let gpu = gpu();
    let changes: Vec<Change> =
        vec![("wrong numbers", wrong_numbers), ("refused", refused), ("rows left out", rows_left_out)];
    let subjects = [
        subject(DType::F32, "odd, 2 x 9 x 7", changes.clone()),
        subject(DType::F16, "gated, even, 1 x 131 x 1", changes),
        subject(DType::F16, "83 queries, 77 keys, open, width 40", vec![("rows left out", rows_left_out)]),
    ];
    let subjects: Vec<&dyn Subject> = subjects.iter().map(|subject| subject as &dyn Subject).collect();
    let mut record = Record::default();
    self_test::run(&gpu, &subjects, &mut record, &mut |_| ()).unwrap();
    assert_eq!(record.classes.len(), 3);
    for (class, found) in &record.classes {
        let (last, changed) = found.candidates.split_last().unwrap();
        assert_eq!(last.fault, None, "{class}");
        assert!(changed.iter().all(|outcome| outcome.fault.is_some()), "{class}: {changed:?}");
        let count = found.candidates.len();
        assert_eq!(record.tuning().pick(*class, count), count - 1, "{class}");
    }
    let told: Vec<&str> = record.faults().map(|(_, _, fault)| fault).collect();
    assert!(told.iter().any(|fault| fault.contains("outside its tolerance")), "{told:?}");
    assert!(told.iter().any(|fault| fault.contains("shader compilation")), "{told:?}");
    assert!(told.iter().any(|fault| fault.contains("NaN")), "{told:?}");
}

#[test]
fn the_faster_of_two_is_chosen_and_wrong_ones_are_not_timed() {
    let gpu = gpu();
    let changes: Vec<Change> = vec![("slow", many_times), ("wrong numbers", wrong_numbers)];
    let subject = subject(DType::F32, "test, even, 1 x 131 x 1", changes);
    let mut record = Record::default();
    contest::run(&gpu, &[&subject], false, &mut record, &mut |_| ()).unwrap();
    let (class, found) = record.classes.iter().next().unwrap();
    let [slow, wrong, own] = found.candidates.as_slice() else { panic!("{found:?}") };
    assert!(slow.seconds > own.seconds && own.seconds > Some(0.0), "{found:?}");
    assert!(wrong.fault.is_some() && wrong.seconds.is_none(), "{found:?}");
    assert_eq!(record.tuning().pick(*class, 3), 2);
}

/// Every candidate that this machine's adapter offers to some classes, those of cooperative matrices where it has them.
/// `scumble tune` tests all classes, which takes a compiler for CPUs minutes.
#[test]
fn candidates_of_this_adapter_pass() {
    let options = GpuOptions { kernels: Some(KernelSet::Cooperative), ..GpuOptions::from_environment() };
    let gpu = Arc::new(Gpu::open(&options).unwrap());
    let parts = ["odd, 2 x 9 x 7", "83 queries, 77 keys, open, width 40"];
    let cases: Vec<Case> = parts.iter().map(|part| subject(DType::F16, part, vec![]).case).collect();
    let subjects: Vec<&dyn Subject> = cases.iter().map(|case| case as &dyn Subject).collect();
    let mut record = Record::default();
    let mut tested = 0;
    self_test::run(&gpu, &subjects, &mut record, &mut |progress| {
        if let Progress::Testing(runs) = progress {
            tested = runs;
        }
    })
    .unwrap();
    assert_eq!(record.classes.len(), parts.len());
    assert!(tested > 0 || gpu.limits().cooperative == 0, "cooperative matrices, and nothing was tested");
    let faults: Vec<_> = record.faults().collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_device_is_measured_once() {
    let folder = tempfile::tempdir().unwrap();
    let open = |checked: bool| Arc::new(Gpu::open(&GpuOptions { checked, ..GpuOptions::default() }).unwrap());
    let prepare = |gpu: &Arc<Gpu>, told: &mut usize| {
        let mut count = |_: Progress| *told += 1;
        tune::prepare(gpu, DType::F32, Effort::Test, Some(folder.path()), &mut count).unwrap()
    };
    let gpu = open(false);
    assert_eq!(tune::recall(&gpu, DType::F32, Some(folder.path())), None);
    let (mut first, mut second) = (0, 0);
    let record = prepare(&gpu, &mut first);
    assert_eq!(gpu.limits().tuning, record.tuning());
    let again = open(false);
    assert_eq!(prepare(&again, &mut second), record);
    assert_eq!((second, again.limits().tuning), (0, record.tuning()));
    // Another precision, and shaders with run-time checks, are other measurements.
    assert_eq!(tune::recall(&again, DType::F16, Some(folder.path())), None);
    assert_eq!(tune::recall(&open(true), DType::F32, Some(folder.path())), None);
    assert_eq!(tune::recall(&gpu, DType::F32, None), None);
}

#[test]
fn compiled_pipelines_are_found_again_and_damaged_ones_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let cache_dir = Some(folder.path().join("cache"));
        Arc::new(Gpu::open(&GpuOptions { cache_dir, ..GpuOptions::from_environment() }).unwrap())
    };
    let draw = |gpu: &Arc<Gpu>| {
        let subject = subject(DType::F32, "test, odd, 1 x 131 x 1", vec![("wrong numbers", |_| ())]);
        let mut record = Record::default();
        self_test::run(gpu, &[&subject], &mut record, &mut |_| ()).unwrap();
        assert_eq!(record.faults().count(), 0);
    };
    let first = open();
    // Backends other than Vulkan keep none.
    let Some((path, loaded)) = first.pipeline_cache() else { return };
    let path = path.to_owned();
    assert_eq!((loaded, path.exists()), (0, false));
    draw(&first);
    first.save_pipelines().unwrap();
    let whole = std::fs::read(&path).unwrap();
    drop(first);
    let second = open();
    let (_, loaded) = second.pipeline_cache().unwrap();
    assert!(loaded > 0 && loaded < whole.len());
    draw(&second);
    drop(second);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 0x55;
    for bytes in [&damaged, &whole[..whole.len() / 2], b"something else"] {
        std::fs::write(&path, bytes).unwrap();
        let gpu = open();
        assert_eq!(gpu.pipeline_cache().unwrap().1, 0);
        draw(&gpu);
        drop(gpu);
        assert!(open().pipeline_cache().unwrap().1 > 0, "the damaged file was not replaced");
    }
}

#[test]
fn nothing_is_written_unasked() {
    let gpu = Gpu::open(&GpuOptions::default()).unwrap();
    assert_eq!(gpu.pipeline_cache(), None);
    gpu.save_pipelines().unwrap();
}

#[test]
fn the_program_keeps_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let scumble = |words: &[&str], cache: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
        let output =
            command.args(words).env("SCUMBLE_CACHE_DIR", cache).env_remove("SCUMBLE_KERNELS").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {told}");
        (String::from_utf8(output.stdout).unwrap(), told)
    };
    let cache = folder.path().join("scumble");
    let (text, _) = scumble(&["tune", "--no-tune", "--precision", "f32"], &cache);
    assert!(text.contains("attention, width 1 to 48, few keys, f32\n  * "), "{text}");
    let records = |suffix: &str| {
        let names = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(suffix)).collect::<Vec<_>>()
    };
    assert_eq!(records(".json").len(), 1);
    let (text, _) = scumble(&["info"], &cache);
    assert!(text.contains("tuning, f32: tested, not timed, 0 not used, kept in "), "{text}");
    std::fs::write(cache.join(&records(".json")[0]), "{").unwrap();
    let (_, told) = scumble(&["info"], &cache);
    assert!(told.contains("ignoring the tuning record"), "{told}");
    let (text, _) = scumble(&["info"], std::path::Path::new(""));
    assert!(text.contains("SCUMBLE_CACHE_DIR is empty"), "{text}");
}
