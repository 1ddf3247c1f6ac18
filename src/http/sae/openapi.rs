//! The description of the API in OpenAPI 3.1, made from the types that read requests and write answers.
//!
//! Types and operations are described where they are defined. This file adds what they share: failures,
//! headers, authentication, and the limits of one daemon.

use kme::KeyLimits;
use serde_json::Value;
use utoipa::OpenApi as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::SecurityScheme;
use utoipa::openapi::{
    Components, ContentBuilder, Header, OpenApi, Ref, RefOr, ServerBuilder, ServerVariableBuilder,
};

use super::extensions::{ExpiryDemand, GradeDemand};
use super::{dec_keys, enc_keys, status};
use crate::http::error;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "dqkd: key delivery by ETSI GS QKD 014 V1.1.1",
        description = "Software key agreement over ordinary networks, delivered through ETSI GS QKD 014; not \
                       quantum key distribution by physics. Who calls is taken from the client certificate. \
                       Limits are those of the daemon that gave this description.",
    ),
    paths(
        status::serve,
        enc_keys::from_query,
        enc_keys::from_body,
        dec_keys::from_query,
        dec_keys::from_body
    ),
    components(schemas(error::Body<'static>, GradeDemand, ExpiryDemand)),
    security(("mutualTLS" = [])),
)]
struct Described;

/// Every answer except 200: status, name, whether only requests with a body get it, meaning.
const FAILURES: &[(&str, &str, bool, &str)] = &[
    (
        "400",
        "BadRequest",
        false,
        "The request has to change, or a key is not there. Nothing was made or used up.",
    ),
    (
        "401",
        "Unauthorized",
        false,
        "The certificate is not that of an SAE served here, or a key is not for it.",
    ),
    ("404", "NoSuchPath", false, "No such path, for example because an ID with `/` is not percent-encoded."),
    ("405", "MethodNotAllowed", false, "The path does not serve this method; `Allow` says which it does."),
    ("413", "BodyTooLarge", true, "The body is longer than any request needs."),
    ("415", "NotJson", true, "The media type of the body is certainly not JSON."),
    ("503", "Unavailable", false, "No keys can be had now. Nothing was handed out; try again later."),
];

/// The description of a daemon with `limits`, as JSON. `docs/openapi.json` is that of the default limits.
///
/// # Errors
/// Only when a value cannot be written as JSON, which is a defect.
pub fn description(limits: &KeyLimits) -> serde_json::Result<String> {
    let mut api = Described::openapi();
    let server = ServerBuilder::new()
        .url("https://{kme}")
        .description(Some("The `sae` listener of a KME"))
        .parameter("kme", ServerVariableBuilder::new().default_value("127.0.0.1:8443"))
        .build();
    api.servers = Some(vec![server]);
    let components = api.components.get_or_insert_with(Components::new);
    components.add_security_scheme(
        "mutualTLS",
        SecurityScheme::MutualTls {
            description: Some("A client certificate of the network's CA that names an SAE".to_owned()),
            deprecated: None,
            extensions: None,
        },
    );
    for (status, name, _, meaning) in FAILURES {
        components.responses.insert((*name).to_owned(), RefOr::T(failure(status, meaning)));
    }
    api.paths.paths.values_mut().for_each(complete);
    finish(&api, limits)
}

fn failure(status: &str, meaning: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    let response = ResponseBuilder::new().description(meaning).content("application/json", body);
    let response = match status {
        "405" => response.header("Allow", text_header("Methods that the path serves")),
        "503" => response.header(
            "Retry-After",
            HeaderBuilder::new()
                .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1))))
                .description(Some("Seconds to wait"))
                .build(),
        ),
        _ => response,
    };
    response.header("Cache-Control", no_store()).build()
}

fn text_header(description: &str) -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new().schema(Some(text)).description(Some(description)).build()
}

fn no_store() -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["no-store"]));
    HeaderBuilder::new().schema(Some(text)).description(Some("Answers are not to be kept")).build()
}

/// Adds to every operation of a path what all operations share.
fn complete(path: &mut PathItem) {
    let operations: [(HttpMethod, Option<&mut Operation>); 2] =
        [(HttpMethod::Get, path.get.as_mut()), (HttpMethod::Post, path.post.as_mut())];
    for (method, operation) in operations {
        let Some(operation) = operation else { continue };
        for (status, name, with_body, _) in FAILURES {
            if !with_body || method == HttpMethod::Post {
                let named = RefOr::Ref(Ref::from_response_name(*name));
                operation.responses.responses.insert((*status).to_owned(), named);
            }
        }
        if let Some(RefOr::T(served)) = operation.responses.responses.get_mut("200") {
            served.headers.insert("Cache-Control".to_owned(), RefOr::T(no_store()));
        }
    }
}

/// Writes the API as JSON, with `limits` in every schema that they bound.
fn finish(api: &OpenApi, limits: &KeyLimits) -> serde_json::Result<String> {
    const SCHEMAS: &str = "/components/schemas";
    let mut json = serde_json::to_value(api)?;
    let (number, size) = (limits.max_per_request, (limits.min_size_bits, limits.max_size_bits));
    let request = format!("{SCHEMAS}/KeyRequest/properties");
    let enc_keys = "/paths/~1api~1v1~1keys~1{slave_SAE_ID}~1enc_keys";
    let query = format!("{enc_keys}/get/parameters");
    let bounds = [
        (format!("{request}/number"), "maximum", number),
        (format!("{request}/size"), "minimum", size.0),
        (format!("{request}/size"), "maximum", size.1),
        (format!("{request}/additional_slave_SAE_IDs"), "maxItems", limits.max_additional_saes),
        (format!("{query}/1/schema"), "maximum", number),
        (format!("{query}/2/schema"), "minimum", size.0),
        (format!("{query}/2/schema"), "maximum", size.1),
        (format!("{SCHEMAS}/KeyIds/properties/key_IDs"), "maxItems", number),
        (format!("{SCHEMAS}/KeyContainer/properties/keys"), "maxItems", number),
    ];
    let bounds = bounds.map(|(place, keyword, bound)| (place, keyword, Value::from(bound)));
    // The macro describes an optional body as one that may be `null`, which dqkd refuses.
    let optional = (format!("{enc_keys}/post/requestBody"), "required", Value::from(false));
    for (place, keyword, value) in bounds.into_iter().chain([optional]) {
        let schema = json.pointer_mut(&place).and_then(Value::as_object_mut);
        let schema = schema.ok_or_else(|| serde::ser::Error::custom(format!("nothing at {place}")))?;
        schema.insert(keyword.to_owned(), value);
    }
    serde_json::to_string_pretty(&json).map(|text| text + "\n")
}
