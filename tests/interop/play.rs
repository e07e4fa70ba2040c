//! Playing: acts on stages, several at a time; every row of an act is a cell.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::programs::Programs;
use crate::report::{Cell, Report, Result as Found};
use crate::rows::{ACTS, Act, Row};
use crate::scene::{Cast, Scene, Seen};
use crate::{Arguments, Done, report, retreat};

/// An act on a stage.
struct Playing {
    act: &'static Act,
    cast: Cast,
    rows: Vec<&'static Row>,
}

/// The acts that are wished for, the longest first.
fn wished(arguments: &Arguments) -> Vec<Playing> {
    let mut all = Vec::new();
    for act in ACTS {
        for cast in Cast::ALL.into_iter().filter(|cast| (act.plays)(cast)) {
            let about = |row: &Row| format!("{} / {} / {}", act.name, row.sentence, cast.name());
            let wanted = |row: &&Row| arguments.only.iter().all(|text| about(row).contains(text.as_str()));
            let rows: Vec<&Row> = act.rows.iter().filter(wanted).collect();
            if !rows.is_empty() {
                all.push(Playing { act, cast, rows });
            }
        }
    }
    all.sort_by_key(|playing| std::cmp::Reverse(playing.act.seconds));
    all
}

/// Plays everything; says whether no cell failed.
pub fn all(arguments: &Arguments, programs: &Programs, work: &Path) -> Done<bool> {
    retreat::hide()?;
    let start = Instant::now();
    let waiting = Mutex::new(wished(arguments));
    let total: usize = waiting.lock().unwrap().iter().map(|p| p.rows.len()).sum();
    let cells = Mutex::new(Vec::new());
    let stages = std::sync::atomic::AtomicUsize::new(0);
    println!("{total} cells on {} stages at a time", arguments.stages);
    std::thread::scope(|scope| {
        for _ in 0..arguments.stages.max(1) {
            scope.spawn(|| {
                loop {
                    let mut queue = waiting.lock().unwrap();
                    if queue.is_empty() {
                        return;
                    }
                    let playing = queue.remove(0);
                    drop(queue);
                    let n = stages.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let home = work.join(format!("{n}"));
                    let played = on_stage(&playing, programs, &format!("s{n}"), &home);
                    if let Some(logs) = &arguments.logs {
                        keep_logs(&home, &logs.join(format!("{} - {}", playing.act.name, playing.cast.name())));
                    }
                    let _ = std::fs::remove_dir_all(&home);
                    cells.lock().unwrap().extend(played);
                }
            });
        }
    });
    let report = Report::new(cells.into_inner().unwrap(), programs.versions.clone(), start.elapsed());
    report.write(&arguments.result)?;
    println!("{}", report.text());
    Ok(report.all_well())
}

/// Plays the rows of an act on a stage of its own.
fn on_stage(playing: &Playing, programs: &Programs, stage: &str, home: &Path) -> Vec<Cell> {
    let cell = |row: &Row, found, time: Duration| {
        let cell = Cell { act: playing.act.name, row: row.sentence, cast: playing.cast, found, time };
        report::show(&cell);
        cell
    };
    let made = std::fs::create_dir_all(home).map_err(|e| e.to_string());
    let made = made.and_then(|()| Scene::new(playing.cast, programs, stage, home));
    let mut scene = match made {
        Ok(scene) => scene,
        Err(why) => {
            let whys = std::iter::once(format!("the stage could not be made: {why}")).chain(std::iter::repeat("no stage".to_owned()));
            return playing.rows.iter().zip(whys).map(|(row, why)| cell(row, Found::Failed(why), Duration::ZERO)).collect();
        }
    };
    let mut cells = Vec::new();
    for row in &playing.rows {
        let start = Instant::now();
        let found = match catch_unwind(AssertUnwindSafe(|| (row.play)(&mut scene))) {
            Ok(Ok(Seen::Holds(note))) => Found::Passed(note),
            Ok(Ok(Seen::Skipped(reason))) => Found::Skipped(reason),
            Ok(Err(why)) => Found::Failed(why),
            Err(_) => Found::Failed("the row panicked".to_owned()),
        };
        cells.push(cell(row, found, start.elapsed()));
    }
    cells
}

fn keep_logs(home: &Path, to: &Path) {
    let _ = std::fs::create_dir_all(to);
    let machines = std::fs::read_dir(home).into_iter().flatten().flatten();
    for machine in machines {
        let files = std::fs::read_dir(machine.path()).into_iter().flatten().flatten();
        for file in files.filter(|f| f.path().extension().is_some_and(|e| e == "log")) {
            let name = format!("{} {}", machine.file_name().to_string_lossy(), file.file_name().to_string_lossy());
            let _ = std::fs::copy(file.path(), to.join(name));
        }
    }
}

/// `--list`.
pub fn list() {
    for act in ACTS {
        let casts: Vec<String> = Cast::ALL.iter().filter(|cast| (act.plays)(cast)).map(Cast::name).collect();
        println!("{} ({})", act.name, casts.join(", "));
        act.rows.iter().for_each(|row| println!("    {}", row.sentence));
    }
}
