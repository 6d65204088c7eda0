use super::*;

fn pictures() -> Vec<PathBuf> {
    ["a.png", "b.b.jpg", "c.webp"].map(|name| Path::new("some").join(name)).to_vec()
}

fn read(name: &str, contents: &str) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    Prompts::Path(path).read(&pictures())
}

#[test]
fn every_form_gives_the_same() {
    let want = ["red, \"ripe\" apple", "two\tcats", "Émile 😀"];
    for (name, contents) in [
        ("p.txt", "red, \"ripe\" apple\ntwo\tcats\nÉmile 😀\n"),
        ("p", "\u{feff}red, \"ripe\" apple\r\ntwo\tcats\r\nÉmile 😀"),
        ("p.json", r#"{"c": "Émile 😀", "a.png": "red, \"ripe\" apple", "b.b.jpg": "two\tcats"}"#),
        ("p.json", r#"["red, \"ripe\" apple", "two\tcats", "Émile 😀"]"#),
        (
            "p.JSON",
            r#"[{"file_name": "x/c.webp", "text": "Émile 😀"}, {"image": "a", "caption": "red, \"ripe\" apple"},
            {"file": "b.b", "prompt": "two\tcats"}]"#,
        ),
        (
            "p.jsonl",
            "{\"file_name\": \"a.png\", \"text\": \"red, \\\"ripe\\\" apple\"}\n\n{\"file\": \"b.b\", \"prompt\": \"two\\tcats\"}\n{\"name\": \"c\", \"text\": \"Émile 😀\"}",
        ),
        ("p.csv", "file_name,prompt\r\na.png,\"red, \"\"ripe\"\" apple\"\r\nc,Émile 😀\nb.b.jpg,two\tcats"),
        ("p.tsv", "c\tÉmile 😀\n\na\t\"red, \"\"ripe\"\" apple\"\nb.b\t\"two\tcats\"\n"),
    ] {
        assert_eq!(
            read(name, contents).unwrap_or_else(|e| panic!("{name} {contents}: {e}")),
            want,
            "{name} {contents}"
        );
    }
    assert_eq!(Prompts::One("x".into()).read(&pictures()).unwrap(), ["x"; 3]);
}

#[test]
fn a_folder_holds_a_file_for_each() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("a.txt", " one\n"), ("b.b.txt", "two"), ("other.txt", "")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let prompts = Prompts::Path(folder.path().to_owned());
    let fault = prompts.read(&pictures()).unwrap_err().to_string();
    assert!(fault.contains("c.webp") && fault.contains("c.txt"), "{fault}");
    assert_eq!(prompts.read(&pictures()[..2]).unwrap(), ["one", "two"]);
}

#[test]
fn what_does_not_fit_is_told() {
    for (name, contents, parts) in [
        ("p.txt", "one\ntwo\n", ["which are 3", "2 prompts"]),
        ("p.json", r#"["one"]"#, ["which are 3", "1 prompts"]),
        ("p.json", r#"{"a": "1", "b.b": "2", "c": "3", "d": "4"}"#, ["which are 3", "4 prompts"]),
        ("p.json", r#"{"a": "1", "b.b": "2"}"#, ["without a prompt", "c.webp"]),
        ("p.json", r#"{"a": 1}"#, ["names and texts", "found 1"]),
        ("p.json", "3", ["names and texts", "found 3"]),
        ("p.json", "{", ["broken file", "JSON"]),
        ("p.jsonl", "[{}]", ["names and texts", "{}"]),
        ("p.csv", "a,b,c", ["row 1", "3 columns"]),
        ("p.csv", "a,1\nb.b,2\nc", ["row 3", "1 columns"]),
        ("p.csv", "a,1\nx/a,2", ["two prompts", "x/a"]),
    ] {
        let fault = read(name, contents).err().unwrap_or_else(|| panic!("{name} {contents}")).to_string();
        assert!(parts.iter().all(|part| fault.contains(part)), "{name} {contents}: {fault}");
    }
    assert!(Prompts::Path("no such file".into()).read(&pictures()).is_err());
}

#[test]
fn a_pictures_text_begins_with_its_prompt() {
    let fields = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: emoji";
    for (text, want) in [
        (format!("a cat\nNegative prompt: blurry\n{fields}"), "a cat"),
        (format!("two\nlines\n{fields}\n"), "two\nlines"),
        (format!("\n{fields}"), ""),
        (format!("\nNegative prompt: x\n{fields}"), ""),
        ("only this".to_owned(), "only this"),
        (format!("say Negative prompt: here\n{fields}"), "say Negative prompt: here"),
    ] {
        assert_eq!(prompt_of(&text), want, "{text}");
    }
}

#[test]
fn a_png_tells_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: Option<&str>, wide: bool| {
        let path = folder.path().join(name);
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        match text {
            Some(text) if wide => encoder.add_itxt_chunk(KEY.to_owned(), text.to_owned()).unwrap(),
            Some(text) => encoder.add_text_chunk(KEY.to_owned(), text.to_owned()).unwrap(),
            None => {}
        }
        encoder.write_header().unwrap().write_image_data(&[1, 2, 3]).unwrap();
        path
    };
    let text = "日本\nSteps: 1, Seed: 2, Size: 1x1";
    let found = Prompts::Embedded
        .read(&[write("a.png", Some("café\nNegative prompt: x"), false), write("b.png", Some(text), true)]);
    assert_eq!(found.unwrap(), ["café", "日本"]);
    let fault = Prompts::Embedded.read(&[write("c.png", None, false)]).unwrap_err().to_string();
    assert!(fault.contains("c.png") && fault.contains("parameters") && fault.contains("no such text"), "{fault}");
    let other = folder.path().join("d.jpg");
    std::fs::write(&other, b"nothing").unwrap();
    assert!(Prompts::Embedded.read(&[other]).unwrap_err().to_string().contains("no PNG"));
}
