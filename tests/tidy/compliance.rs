//! `docs/compliance.md`: each requirement stands there once, with tests that are there and
//! name it, or with the reason why there is none.

/// How many requirements each specification has, in the order of the page.
pub const FAMILIES: [(char, u32); 8] =
    [('R', 72), ('O', 10), ('F', 9), ('D', 6), ('H', 7), ('C', 5), ('P', 7), ('W', 5)];

/// What is wrong with the page. `read` gives the text of a file of the project.
pub fn check_compliance(page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected = FAMILIES
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")));
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", id, _, proof, ""] = cells[..] else { continue };
        if !is_id(id) {
            continue;
        }
        match expected.next() {
            Some(next) if next == id => wrong.extend(check_proof(id, proof, &read)),
            next => {
                wrong.push(format!("{id} stands where {next:?} should"));
                return wrong;
            }
        }
    }
    wrong.extend(expected.map(|id| format!("{id} is missing")));
    wrong
}

fn is_id(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| FAMILIES.iter().any(|(letter, _)| *letter == c))
        && text.len() > 1
        && chars.all(|c| c.is_ascii_digit())
}

/// Tests are between backticks, as `file::test`; a cell without one has to give a reason.
fn check_proof(id: &str, proof: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let tests: Vec<(&str, &str)> =
        proof.split('`').skip(1).step_by(2).filter_map(|name| name.split_once("::")).collect();
    if tests.is_empty() {
        let has_reason = ["Not ours:", "By the operator:"].iter().any(|r| proof.starts_with(r));
        return if has_reason {
            vec![]
        } else {
            vec![format!("{id}: neither a test nor a reason")]
        };
    }
    let mut wrong = Vec::new();
    for (file, test) in tests {
        let path = match file.ends_with(".py") {
            true => format!("tests/e2e/{file}"),
            false if file.starts_with("tests/") => file.to_owned(),
            false => format!("src/{file}"),
        };
        match read(&path) {
            Some(text) if !has_function(&text, test) => {
                wrong.push(format!("{id}: {path} has no test {test}"));
            }
            Some(text) if !names(&text, test, id) => {
                wrong.push(format!("{id}: {test} in {path} does not name it"));
            }
            Some(_) => {}
            None => wrong.push(format!("{id}: there is no {path}")),
        }
    }
    wrong
}

fn has_function(text: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("def {name}(")].iter().any(|head| text.contains(head))
}

/// By its name (`r1_r2_an_id`), by the number in the file, or by a range in it (`R3 to R5`).
fn names(text: &str, test: &str, id: &str) -> bool {
    let in_name = test.split('_').any(|word| word.eq_ignore_ascii_case(id));
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let number = |word: &str| {
        let (letter, number) = word.split_at_checked(1)?;
        id.starts_with(letter).then(|| number.parse::<u32>().ok()).flatten()
    };
    let Some(wanted) = number(id) else { return false };
    let in_range = words.windows(3).any(|three| {
        three[1] == "to"
            && number(three[0])
                .zip(number(three[2]))
                .is_some_and(|(a, b)| (a..=b).contains(&wanted))
    });
    in_name || words.contains(&id) || in_range
}
