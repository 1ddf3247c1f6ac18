//! The real curl.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::manifest::Sae;

/// One SAE's curl.
#[derive(Clone)]
pub struct Curl {
    ca: PathBuf,
    args: Vec<String>,
}

/// What came back.
#[derive(Debug)]
pub struct CurlAnswer {
    /// 0 when there was no HTTP answer.
    pub status: u16,
    pub version: String,
    /// In lower case, together with curl's own messages.
    pub headers: String,
    pub body: String,
    /// curl's own exit code.
    pub exit: i32,
}

impl Curl {
    /// With a `.p12` bundle.
    pub fn p12(ca: &Path, sae: &Sae) -> Self {
        let cert = format!("{}:{}", sae.p12.display(), sae.p12_password);
        Self::with(ca, &["--cert", &cert, "--cert-type", "P12"])
    }

    /// With PEM files.
    pub fn pem(ca: &Path, cert: &Path, key: &Path) -> Self {
        let path = |path: &Path| path.display().to_string();
        Self::with(ca, &["--cert", &path(cert), "--key", &path(key)])
    }

    /// Without a certificate.
    pub fn nobody(ca: &Path) -> Self {
        Self::with(ca, &[])
    }

    fn with(ca: &Path, args: &[&str]) -> Self {
        Self { ca: ca.to_owned(), args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }

    /// With more arguments.
    pub fn and(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub fn get(&self, url: &str) -> CurlAnswer {
        self.call(&[url])
    }

    pub fn post(&self, url: &str, body: &str) -> CurlAnswer {
        self.call(&["-H", "Content-Type: application/json", "-d", body, url])
    }

    pub fn call(&self, args: &[&str]) -> CurlAnswer {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
            .arg(&self.ca)
            .args(&self.args)
            .args(["--dump-header", "/dev/stderr", "--write-out", "\n%{http_code} %{http_version}"])
            .args(args)
            .output()
            .expect("curl is installed");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, tail) = text.rsplit_once('\n').unwrap();
        let (status, version) = tail.split_once(' ').unwrap();
        CurlAnswer {
            status: status.parse().unwrap(),
            version: version.to_owned(),
            headers: String::from_utf8_lossy(&output.stderr).to_ascii_lowercase(),
            body: body.to_owned(),
            exit: output.status.code().unwrap(),
        }
    }
}

impl CurlAnswer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The `message` of an error, which every error has.
    pub fn message(&self) -> String {
        assert!(self.headers.contains("content-type: application/json"), "{self:?}");
        self.json()["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}")).to_owned()
    }

    /// Key IDs and keys of a container.
    pub fn keys(&self) -> Vec<(String, String)> {
        assert_eq!(self.status, 200, "{self:?}");
        let keys = self.json()["keys"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        keys.iter().map(|key| (text(&key["key_ID"]), text(&key["key"]))).collect()
    }

    /// The only key of a container.
    pub fn key(&self) -> (String, String) {
        let mut keys = self.keys();
        assert_eq!(keys.len(), 1, "{self:?}");
        keys.remove(0)
    }
}
