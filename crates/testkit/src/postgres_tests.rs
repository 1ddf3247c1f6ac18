//! Checks what the store's tests assume about the tests' Postgres.

use std::path::PathBuf;

use super::{Stop, TestPostgres, program, run};
use crate::needs;

#[test]
fn each_database_is_new_and_of_its_own() {
    needs!(Postgres);
    let server = TestPostgres::shared();
    let (one, two) = (server.new_database(), server.new_database());
    assert_ne!(one, two);
    server
        .sql(TestPostgres::database_of(&one), &["CREATE TABLE here (n INT)", "INSERT INTO here VALUES (7)"]);
    assert_eq!(server.sql(TestPostgres::database_of(&one), &["SELECT n FROM here"]), "7");
    assert!(server.try_sql(TestPostgres::database_of(&two), &["SELECT n FROM here"]).is_err());
}

#[test]
fn tls_is_checked_against_the_authority_and_the_name() {
    needs!(Postgres);
    let server = TestPostgres::shared();
    let database = server.new_database();
    let url = server.tls_url(TestPostgres::database_of(&database));
    let ask = |url: &str| {
        run(program("psql")
            .args(["-X", "-A", "-t", "-c"])
            .args(["SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", url]))
    };
    assert_eq!(ask(&url), Ok("t".to_owned()));
    assert_eq!(ask(&database), Ok("f".to_owned()), "the socket needs none");
    let ca = |path: PathBuf| path.display().to_string();
    let wrong = url.replace(&ca(server.ca()), &ca(server.another_ca()));
    let refusal = ask(&wrong).unwrap_err();
    assert!(refusal.contains("certificate"), "{refusal}");
    assert!(ask(&url.replace("a%20p", "b%20p")).unwrap_err().contains("password authentication failed"));
}

#[test]
fn a_private_server_keeps_its_rows_over_every_kind_of_stop() {
    needs!(Postgres);
    let server = TestPostgres::private();
    server.sql("postgres", &["CREATE TABLE here (n INT)"]);
    for (number, how) in [(1, Stop::Fast), (2, Stop::Immediate), (3, Stop::Kill)] {
        server.sql("postgres", &[&format!("INSERT INTO here VALUES ({number})")]);
        server.stop(how).unwrap();
        assert!(server.try_sql("postgres", &["SELECT 1"]).is_err());
        server.start().unwrap();
        assert_eq!(server.sql("postgres", &["SELECT max(n) FROM here"]), number.to_string());
    }
    let folder = server.folder.clone();
    drop(server);
    assert!(!folder.exists());
}
