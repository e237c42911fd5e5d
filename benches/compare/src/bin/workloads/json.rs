//! A document is parsed, edited and printed.

use serde_json::{Value, json};

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix_bytes};

pub const ROWS: &[Row] = &[Row {
    name: "json",
    what: "a document of 4,000 orders, 1.5 MB, is parsed with serde_json, changed all over, and printed, 12 times",
    run: documents,
}];

fn document() -> String {
    let mut random = Random::new(0);
    let orders: Vec<Value> = (0..4000)
        .map(|number| {
            let bits = random.next();
            let items: Vec<Value> = (0..bits % 5 + 1)
                .map(|item| json!({ "sku": format!("part-{}", bits >> 7 & 0xfff), "count": item + 1, "price": item as f64 * 1.25 }))
                .collect();
            json!({
                "id": number,
                "customer": { "name": format!("Customer {}", bits % 997), "mail": format!("c{}@example.org", bits % 997) },
                "items": items,
                "notes": "leave at the door; ".repeat((bits >> 20) as usize % 6),
                "paid": bits & 1 == 0,
            })
        })
        .collect();
    json!({ "orders": orders }).to_string()
}

fn edit(document: &mut Value) {
    let orders = document["orders"].as_array_mut().expect("a list of orders");
    orders.retain(|order| order["id"].as_u64().is_some_and(|id| id % 10 != 3));
    for order in orders {
        let total: f64 = order["items"]
            .as_array()
            .expect("a list of items")
            .iter()
            .filter_map(|item| Some(item["price"].as_f64()? * item["count"].as_f64()?))
            .sum();
        let name = order["customer"]["name"].as_str().expect("a name").to_uppercase();
        order["customer"]["name"] = name.into();
        let fields = order.as_object_mut().expect("an object");
        fields.remove("notes");
        fields.insert("total".into(), total.into());
        fields.insert("history".into(), json!(["received", "packed", { "by": "night shift" }]));
    }
}

fn documents(scale: &Scale, watch: &mut Watch) -> u64 {
    let text = document();
    watch.begin();
    (0..scale.of(12)).fold(0, |sum, _| {
        let mut document: Value = serde_json::from_str(&text).expect("what has been printed can be parsed");
        edit(&mut document);
        mix_bytes(sum, document.to_string().as_bytes())
    })
}
