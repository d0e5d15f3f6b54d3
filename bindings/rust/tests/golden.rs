//! The golden traces: tokens, actions, costs and text are those of the traces.

mod common;

use common::{cases, model};

#[test]
fn every_case_gives_its_tokens_actions_costs_and_text() {
    let cases = cases();
    assert!(!cases.is_empty());
    for case in cases {
        let mut session = model().session().unwrap();
        let tokens = session.generate(&case.prompt, &case.options).unwrap();
        let control = tokens.control();
        let mut made = Vec::new();
        for token in tokens {
            made.push(token.unwrap());
            if let Some((_, budget)) = case.budget_at.iter().find(|(step, _)| *step == made.len()) {
                control.set_budget(*budget).unwrap();
            }
        }
        assert_eq!(made.iter().map(|token| token.token).collect::<Vec<_>>(), case.tokens, "{}", case.name);
        assert_eq!(made.iter().skip(1).map(|token| token.action.clone()).collect::<Vec<_>>(), case.actions, "{}", case.name);
        assert_eq!(made.len(), case.costs.len() + 1);
        for (token, cost) in made.iter().skip(1).zip(&case.costs) {
            assert!((token.relative_cost - cost).abs() <= 1e-9 * cost, "{}: {} and {cost}", case.name, token.relative_cost);
        }
        assert_eq!(made.iter().map(|token| token.text.as_str()).collect::<String>(), case.text, "{}", case.name);
    }
}
