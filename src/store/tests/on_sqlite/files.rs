//! What the files of SQLite show, and full and read-only disks.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn a_database_that_is_missing_is_refused_with_what_to_do() {
    let site = site();
    let settings = StoreSettings { migrate: false, ..site.settings("one.kek") };
    let error = Store::open(settings, site.clock.clone(), Arc::new(OsRandom)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Settings(text) if text.contains("dqkd migrate")), "{error}");
}

#[tokio::test]
async fn no_file_shows_key_material_or_the_kek() {
    let site = site();
    let store = site.open().await;
    let batch = Sample::to(&[to_sae("bob"), to_sae("carol")], 50).stored(&store).await;
    Ask::by("bob").gets(&store, &batch.ids()).await;
    let mut needles: Vec<Vec<u8>> =
        batch.keys.iter().map(|key| key.material.expose()[..16].to_vec()).collect();
    let kek = std::fs::read_to_string(site.path("one.kek")).unwrap();
    let digits = kek.lines().last().unwrap();
    needles.push(hex::decode(digits).unwrap());
    needles.push(digits.as_bytes().to_vec());
    let files = || {
        std::fs::read_dir(site.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("site.db"))
            .map(|path| std::fs::read(path).unwrap())
            .collect::<Vec<_>>()
    };
    let holds = |needle: &[u8]| files().iter().any(|file| file.windows(needle.len()).any(|w| w == needle));
    assert!(holds(batch.batch_id.as_bytes()), "the search finds what is there");
    for needle in &needles {
        assert!(!holds(needle));
    }
    store.close().await;
    assert!(!needles.iter().any(|needle| holds(needle)));
}

/// Also while there is always something to erase.
#[tokio::test]
async fn a_retrieved_key_is_in_no_file_soon_after_not_even_sealed() {
    let site = site();
    let store = site.open().await;
    let batch = Sample::to_bob(3).stored(&store).await;
    let mut ids = batch.ids();
    ids.sort();
    let slots: Vec<u8> =
        sqlx::query_scalar("SELECT slots FROM records").fetch_one(&mut *site.sql().await).await.unwrap();
    let slots: Vec<&[u8]> = slots.chunks(slots.len() / 3).collect();
    let is_somewhere = |slot: &[u8]| {
        let files = ["site.db", "site.db-wal"].map(|name| std::fs::read(site.path(name)).unwrap());
        files.iter().any(|file| file.windows(slot.len()).any(|bytes| bytes == slot))
    };
    Ask::by("bob").gets(&store, &ids[..2]).await;
    assert!(is_somewhere(slots[0]), "the log still has it");
    let expired = Sample::to_bob(1);
    expired.with_life(START, async |batch| store.insert_batch(batch).await).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    assert_eq!(store.sweep(1).await.unwrap().batches, 1);
    // The log is emptied after the answer, and before the next job.
    assert!(!store.sweep(1).await.unwrap().any());
    assert_eq!(std::fs::metadata(site.path("site.db-wal")).unwrap().len(), 0);
    assert!(!is_somewhere(slots[0]) && !is_somewhere(slots[1]));
    assert!(is_somewhere(slots[2]), "the search finds what is there");
    Ask::by("bob").gets(&store, &ids[2..]).await;
}

#[tokio::test]
async fn the_database_and_its_log_are_readable_for_the_owner_only() {
    let site = site();
    let store = site.open().await;
    Sample::to_bob(1).stored(&store).await;
    for name in ["site.db", "site.db-wal", "site.db-shm"] {
        let mode = std::fs::metadata(site.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let site = site();
    std::fs::write(site.path("site.db"), "this is not a database, ".repeat(100)).unwrap();
    let error = site.try_open("one.kek").await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn a_full_disk_stores_nothing_and_recovers() {
    let site = site();
    let store = site.open().await;
    let first = Sample::to_bob(10).stored(&store).await;
    // SQLite raises a limit below the present size to that size: no page may be added from now on.
    on_writer(&store, "PRAGMA max_page_count = 1").await.unwrap();
    let big = Sample::to_bob(4000);
    let error = big.insert(&store).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert_eq!(error.public_message(), "the key store has no space left");
    assert_eq!(counts(&store).await, Counts { batches: 1, keys: 10 });
    // Retrievals go on: they need no new page.
    Ask::by("bob").gets(&store, &first.ids()).await;
    on_writer(&store, "PRAGMA max_page_count = 1000000").await.unwrap();
    assert_eq!(big.insert(&store).await.unwrap(), Inserted::Stored);
}

#[tokio::test]
async fn a_read_only_connection_refuses_changes_and_the_next_call_tries_a_new_one() {
    let site = site();
    let store = site.open().await;
    let ids = Sample::to_bob(1).stored(&store).await.ids();
    on_writer(&store, "PRAGMA query_only = ON").await.unwrap();
    let refused = Ask::by("bob").at(&store, &ids).await;
    assert!(matches!(refused, Err(RetrieveError::Store(StoreError::ReadOnly(_)))), "{refused:?}");
    store.ping().await.unwrap();
    Ask::by("bob").gets(&store, &ids).await;
}

#[tokio::test]
async fn a_transaction_that_ended_by_itself_does_not_stop_the_writer() {
    let site = site();
    let store = site.open().await;
    // The writer's own COMMIT and ROLLBACK then find no transaction, as after a full disk.
    assert!(on_writer(&store, "ROLLBACK").await.is_err());
    Sample::to_bob(1).stored(&store).await;
    // And a connection left inside a transaction is replaced.
    assert!(on_writer(&store, "COMMIT; BEGIN; INSERT INTO no_such_table VALUES (1)").await.is_err());
    Sample::to_bob(1).stored(&store).await;
    assert_eq!(counts(&store).await.batches, 2);
}

/// Needs root, for a real file system without space; others skip it.
#[tokio::test]
async fn a_file_system_without_space_is_full_and_recovers() {
    let site = site();
    let mount = site.path("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=768k", "tmpfs"])
        .arg(&mount)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return;
    }
    let unmount = Unmount(mount.clone());
    let keks = KeyEncryptionKeys::from_file(&site.path("one.kek")).unwrap();
    let url = format!("sqlite://{}", mount.join("site.db").display());
    let settings = StoreSettings { url, kme: kme("site-b"), keks, migrate: true };
    let store = Store::open(settings, site.clock.clone(), Arc::new(OsRandom)).await.unwrap();
    let first = Sample::to_bob(3).stored(&store).await;
    std::fs::write(mount.join("filler"), vec![0; 400 * 1024]).unwrap();
    let error = Sample::to_bob(4096).insert(&store).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    std::fs::remove_file(mount.join("filler")).unwrap();
    Sample::to_bob(3).stored(&store).await;
    Ask::by("bob").gets(&store, &first.ids()).await;
    store.close().await;
    drop(unmount);
}

/// Root may write to any file, so this says something only for other users.
#[tokio::test]
async fn a_read_only_file_is_reported_and_works_again_once_repaired() {
    let site = site();
    site.open().await.close().await;
    // SQLite gives the log and its index the mode that the database file has when it makes them.
    let mode = |mode| {
        for path in ["site.db", "site.db-wal", "site.db-shm"].map(|name| site.path(name)) {
            if path.exists() {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    };
    mode(0o400);
    if std::fs::OpenOptions::new().write(true).open(site.path("site.db")).is_ok() {
        return;
    }
    let store = site.open().await;
    let error = Sample::to_bob(1).insert(&store).await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
    mode(0o600);
    Sample::to_bob(1).stored(&store).await;
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
