//! The listings of a document in Markdown, for tests that do what stands there; the tool's as well.

/// What stands between two fences.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// The first word behind the fence.
    pub(crate) language: String,
    /// The rest of that line.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The listings of a document, in their order.
pub(crate) fn listings(document: &str) -> Vec<Listing> {
    let fenced = document.split("```").skip(1).step_by(2);
    fenced
        .map(|block| {
            let (info, text) = block.split_once('\n').unwrap_or((block, ""));
            let (language, name) = info.split_once(' ').unwrap_or((info, ""));
            Listing {
                language: language.to_owned(),
                name: name.to_owned(),
                text: text.to_owned(),
            }
        })
        .collect()
}

/// What its links lead to, without parts of a document. Listings have none: a lambda looks like one.
pub(crate) fn links(document: &str) -> Vec<&str> {
    let prose = document.split("```").step_by(2);
    prose
        .flat_map(|prose| prose.split("](").skip(1))
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|link| !link.is_empty())
        .collect()
}
