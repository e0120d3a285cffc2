//! The documentation of roles and operations is made from the code.

#[test]
fn the_table_of_operations_is_current() {
    const BEGIN: &str = "<!-- operations: begin -->\n";
    const END: &str = "<!-- operations: end -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/access.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{BEGIN}\n{}\n{END}{after}", muster_domain::access::table());
    if std::env::var_os("MUSTER_UPDATE_DOCS").is_some() {
        std::fs::write(path, current).unwrap();
    } else {
        assert!(page == current, "{path} is not current: run this test with MUSTER_UPDATE_DOCS=1");
    }
}
