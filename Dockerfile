# Two stages with the same glibc (Debian 12): the binary needs only libc, libm and libgcc_s.
# The tags are those the project was written against; pin them by digest where builds must repeat.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY crates crates
COPY migrations migrations
COPY src src
COPY tests tests
RUN cargo build --release --locked --bin dqkd

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/dqkd /usr/local/bin/dqkd
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/dqkd/
USER nonroot
# Mount the configuration with its certificates at /etc/dqkd, and a volume for the database named in [store] url.
WORKDIR /etc/dqkd
EXPOSE 8443 9443 9643
ENTRYPOINT ["/usr/local/bin/dqkd"]
CMD ["serve", "--config", "/etc/dqkd/kme.toml"]
